"""Three domains of the same four classes; a function without self gives a default, the domain comes from task_ids."""

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms as transforms

from datasets.utils import set_default_from_args
from datasets.utils.continual_dataset import ContinualDataset, store_masked_loaders


class Stripes(torch.utils.data.Dataset):
    def __init__(self, train, transform):
        n = 48 if train else 24
        self.targets, self.task_ids = np.arange(n) % 4, np.arange(n) * 3 // n
        shades = np.random.RandomState(int(train)).randint(0, 60, (n, 16, 16, 3))
        shades[np.arange(n), self.targets * 4] += 190 - 60 * self.task_ids[:, None, None]
        self.data = shades.astype(np.uint8)
        self.train, self.transform, self.plain = train, transform, transforms.ToTensor()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        image = transforms.functional.to_pil_image(self.data[i])
        out = self.transform(image), int(self.targets[i])
        return (*out, self.plain(image)) if self.train else out


class DropDomains(ContinualDataset):
    NAME = 'drop-domains'
    SETTING = 'domain-il'
    N_CLASSES_PER_TASK = 4
    N_TASKS = 3
    N_CLASSES = 4
    SIZE = (16, 16)

    def get_data_loaders(self):
        transform = transforms.ToTensor()
        return store_masked_loaders(Stripes(True, transform), Stripes(False, transform), self)

    @staticmethod
    def get_transform():
        return None

    @set_default_from_args('backbone')
    def get_backbone():
        return 'resnet18'

    @staticmethod
    def get_loss():
        return F.cross_entropy

    @staticmethod
    def get_normalization_transform():
        return None

    @staticmethod
    def get_denormalization_transform():
        return None

    @staticmethod
    def get_epochs():
        return 1

    @staticmethod
    def get_batch_size():
        return 8
