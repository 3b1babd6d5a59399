"""Pictures as a torch dataset with PIL transforms, get_data_loaders and store_masked_loaders; values from a yaml file."""

from typing import Tuple

import numpy as np
import torch.nn.functional as F
import torchvision.transforms as transforms
from PIL import Image
from torch.utils.data import Dataset

from datasets.transforms.denormalization import DeNormalize
from datasets.utils import set_default_from_args
from datasets.utils.continual_dataset import ContinualDataset, fix_class_names_order, store_masked_loaders
from utils.conf import base_path


class Drawn(Dataset):
    def __init__(self, root, train=True, transform=None, target_transform=None):
        self.root, self.train, self.transform = root, train, transform
        rng = np.random.RandomState(int(train))
        self.targets = np.arange(72 if train else 36) % 6
        self.data = rng.randint(0, 120, (len(self.targets), 16, 16, 3)).astype(np.uint8)
        for i, c in enumerate(self.targets):
            self.data[i, 2 * c:2 * c + 3] += 120

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index: int):
        img, target = self.data[index], self.targets[index]
        img = Image.fromarray(img)
        return (self.transform(img) if self.transform is not None else img), target


class MyDrawn(Drawn):
    def __init__(self, *args, **kwargs):
        self.not_aug_transform = transforms.Compose([transforms.ToTensor()])
        super().__init__(*args, **kwargs)

    def __getitem__(self, index: int) -> Tuple[Image.Image, int, Image.Image]:
        img, target = Image.fromarray(self.data[index], mode='RGB'), self.targets[index]
        original_img = img.copy()
        not_aug_img = self.not_aug_transform(original_img)
        img = self.transform(img)
        if hasattr(self, 'logits'):
            return img, target, not_aug_img, self.logits[index]
        return img, target, not_aug_img


class DropDigits(ContinualDataset):
    NAME = 'drop-digits'
    SETTING = 'class-il'
    N_CLASSES_PER_TASK = 2
    N_TASKS = 3
    N_CLASSES = N_CLASSES_PER_TASK * N_TASKS
    SIZE = (16, 16)
    MEAN, STD = (0.4, 0.4, 0.4), (0.25, 0.25, 0.25)
    TRANSFORM = transforms.Compose([transforms.RandomCrop(16, padding=2), transforms.RandomHorizontalFlip(),
                                    transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    TEST_TRANSFORM = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def get_data_loaders(self):
        train_dataset = MyDrawn(base_path() + 'DRAWN', train=True, transform=self.TRANSFORM)
        test_dataset = Drawn(base_path() + 'DRAWN', train=False, transform=self.TEST_TRANSFORM)
        train, test = store_masked_loaders(train_dataset, test_dataset, self)
        return train, test

    @staticmethod
    def get_transform():
        return transforms.Compose([transforms.ToPILImage(), DropDigits.TRANSFORM])

    @set_default_from_args('backbone')
    def get_backbone():
        return 'resnet18'

    @staticmethod
    def get_loss():
        return F.cross_entropy

    @staticmethod
    def get_normalization_transform():
        return transforms.Normalize(DropDigits.MEAN, DropDigits.STD)

    @staticmethod
    def get_denormalization_transform():
        return DeNormalize(DropDigits.MEAN, DropDigits.STD)

    @set_default_from_args('n_epochs')
    def get_epochs(self):
        return 1

    @set_default_from_args('batch_size')
    def get_batch_size(self):
        return 8

    def get_class_names(self):
        if self.class_names is not None:
            return self.class_names
        self.class_names = fix_class_names_order(['a', 'b', 'c', 'd', 'e', 'f'], self.args)
        return self.class_names

    @staticmethod
    def get_prompt_templates():
        return ['a drawing of {}.']
