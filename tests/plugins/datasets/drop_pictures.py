"""Arrays on disk, tasks of unlike sizes, prompt templates by name; asks for a download where the files are absent."""

import os

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms as transforms
from PIL import Image
from torch.utils.data import Dataset

from datasets.transforms.denormalization import DeNormalize
from datasets.utils import set_default_from_args
from datasets.utils.continual_dataset import ContinualDataset, fix_class_names_order, store_masked_loaders
from datasets.utils.hf_download import download_from_hub
from datasets.utils.validation import get_train_val
from utils import smart_joint
from utils.conf import base_path
from utils.prompt_templates import templates


class Pictures(Dataset):
    N_CLASSES = 6
    LABELS = ['ant', 'bee', 'cat', 'dog', 'eel', 'fox']

    def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
        self.root, self.train, self.transform, self.target_transform = root, train, transform, target_transform
        self.not_aug_transform = transforms.Compose([transforms.Resize((16, 16), interpolation=3), transforms.ToTensor()])
        if download and not os.path.isdir(root):
            download_from_hub('somebody/pictures', local_dir=root)
        part = 'train' if train else 'test'
        self.data = np.load(smart_joint(root, f'/x_{part}.npy'))
        self.targets = np.load(smart_joint(root, f'y_{part}.npy'))

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        img, target = Image.fromarray(self.data[index]), int(self.targets[index])
        not_aug_img = self.not_aug_transform(img.copy())
        img = self.transform(img) if self.transform is not None else img
        if not self.train:
            return img, target
        if hasattr(self, 'logits'):
            return img, target, not_aug_img, self.logits[index]
        return img, target, not_aug_img


class DropPictures(ContinualDataset):
    NAME = 'drop-pictures'
    SETTING = 'class-il'
    N_CLASSES_PER_TASK = [3, 2, 1]
    N_TASKS = len(N_CLASSES_PER_TASK)
    N_CLASSES = Pictures.N_CLASSES
    SIZE = (16, 16)
    MEAN, STD = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)
    TRANSFORM = transforms.Compose([
        transforms.RandomResizedCrop(SIZE, scale=(0.5, 1.0), interpolation=3),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.ToTensor(),
        transforms.Normalize(mean=MEAN, std=STD)])
    TEST_TRANSFORM = transforms.Compose([transforms.Resize(SIZE, interpolation=3), transforms.ToTensor(),
                                         transforms.Normalize(mean=MEAN, std=STD)])

    def __init__(self, args, held_out: bool = False):
        super().__init__(args)
        self.held_out = held_out

    def get_data_loaders(self):
        root = smart_joint(base_path(), 'pictures')
        train_dataset = Pictures(root, train=True, transform=self.TRANSFORM, download=True)
        if self.held_out:
            train_dataset, test_dataset = get_train_val(train_dataset, self.TEST_TRANSFORM, self.NAME, 0.25)
            test_dataset.train = False
        else:
            test_dataset = Pictures(root, train=False, transform=self.TEST_TRANSFORM, download=True)
        return store_masked_loaders(train_dataset, test_dataset, self)

    def get_class_names(self):
        if self.class_names is None:
            self.class_names = fix_class_names_order([n.replace('_', ' ') for n in Pictures.LABELS], self.args)
        return self.class_names

    @staticmethod
    def get_prompt_templates():
        return templates['cifar100']

    @staticmethod
    def get_transform():
        return transforms.Compose([transforms.ToPILImage(), DropPictures.TRANSFORM])

    @set_default_from_args('backbone')
    def get_backbone():
        return 'drop-vit'

    @staticmethod
    def get_loss():
        return F.cross_entropy

    @staticmethod
    def get_normalization_transform():
        return transforms.Normalize(mean=DropPictures.MEAN, std=DropPictures.STD)

    @staticmethod
    def get_denormalization_transform():
        return DeNormalize(DropPictures.MEAN, DropPictures.STD)

    @set_default_from_args('n_epochs')
    def get_epochs(self):
        return 2

    @set_default_from_args('batch_size')
    def get_batch_size(self):
        return 8

    @set_default_from_args('lr_scheduler')
    def get_scheduler_name(self):
        return 'multisteplr'

    @set_default_from_args('lr_milestones')
    def get_milestones(self):
        return [1]
