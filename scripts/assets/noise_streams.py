"""Three small streams of 32 x 32 noise images, to see whether a method file runs at all"""

import torch
from torchvision import transforms as T

from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.gcl_dataset import GCLDataset
from datasets.utils.samples import ArraySamples

STATS = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
AUGMENTATION = T.Compose([T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(*STATS)])
VALUES = {"batch_size": 8, "n_epochs": 1, "backbone": "resnet18", "num_filters": 8}


def pictures(labels: torch.Tensor, train: bool) -> ArraySamples:
    draw = torch.Generator().manual_seed(int(train))
    return ArraySamples(torch.randint(0, 256, (len(labels), 3, 32, 32), generator=draw, dtype=torch.uint8), labels)


class NoiseClasses(ContinualDataset):
    NAME = "noise-classes"
    SETTING = "class-il"
    N_TASKS = 3
    N_CLASSES_PER_TASK = 2
    SIZE = (32, 32)
    MEAN, STD = STATS
    TRANSFORM = AUGMENTATION
    DEFAULTS = VALUES

    def load(self, train: bool) -> ArraySamples:
        return pictures(torch.arange(96 if train else 24) % 6, train)


class NoiseDomains(ContinualDataset):
    NAME = "noise-domains"
    SETTING = "domain-il"
    N_TASKS = 3
    N_CLASSES_PER_TASK = 4
    SIZE = (32, 32)
    MEAN, STD = STATS
    TRANSFORM = AUGMENTATION
    DEFAULTS = VALUES

    def load(self, train: bool) -> ArraySamples:
        samples = pictures(torch.arange(96 if train else 24) % 4, train)
        samples.task_ids = torch.arange(len(samples)) * 3 // len(samples)
        return samples


class NoiseGeneral(GCLDataset):
    NAME = "noise-general"
    SETTING = "general-continual"
    N_CLASSES_PER_TASK = 4
    SIZE = (32, 32)
    MEAN, STD = STATS
    TRANSFORM = AUGMENTATION
    DEFAULTS = VALUES

    def load(self, train: bool) -> ArraySamples:
        return pictures(torch.arange(48 if train else 12) % 4, train)
