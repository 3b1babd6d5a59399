"""One stream that batches itself, with an argument of its own in the constructor."""

import numpy as np
import torch
import torch.nn.functional as F

from datasets.utils import set_default_from_args
from datasets.utils.gcl_dataset import GCLDataset


class SelfBatched:
    def __init__(self, n, train, seed):
        rng = np.random.RandomState(seed)
        self.labels = torch.arange(n) * 5 // n
        self.images = torch.from_numpy(rng.rand(n, 3, 16, 16)).float()
        self.images[torch.arange(n), :, self.labels * 3] += 1
        self.train = train
        self.dataset = self

    def __iter__(self):
        for start in range(0, len(self.labels), 8):
            x, y = self.images[start:start + 8], self.labels[start:start + 8]
            yield (x, y, x) if self.train else (x, y)


class DropStream(GCLDataset):
    NAME = 'drop-stream'
    SETTING = 'general-continual'
    N_CLASSES = 5
    N_TASKS = 1
    N_CLASSES_PER_TASK = 5
    SIZE = (16, 16)

    def __init__(self, args, stream_seed: int = 3):
        super().__init__(args)
        self.stream_seed = stream_seed

    def get_data_loaders(self):
        self.train_loader = SelfBatched(60, True, self.stream_seed)
        test = SelfBatched(20, False, self.stream_seed + 1)
        self.test_loaders.append(test)
        return self.train_loader, test

    @set_default_from_args('backbone')
    def get_backbone():
        return 'resnet18'

    @staticmethod
    def get_loss():
        return F.cross_entropy

    @staticmethod
    def get_transform():
        return None

    @staticmethod
    def get_normalization_transform():
        return None

    @staticmethod
    def get_denormalization_transform():
        return None

    @set_default_from_args('batch_size')
    def get_batch_size(self):
        return 8
