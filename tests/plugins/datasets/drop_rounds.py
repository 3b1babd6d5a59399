"""A stream of the general setting that knows its sizes only in __init__, after the base class."""

import torch.nn.functional as F

from datasets.drop_stream import SelfBatched
from datasets.utils import set_default_from_args
from datasets.utils.gcl_dataset import GCLDataset


class DropRounds(GCLDataset):
    NAME = "drop-rounds"
    SETTING = "general-continual"
    N_TASKS = 1

    def __init__(self, args):
        super().__init__(args)
        self.num_rounds = 2
        self.N_CLASSES = 5
        self.N_CLASSES_PER_TASK = 5
        self.SIZE = (16, 16)

    def get_data_loaders(self):
        self.train_loader = SelfBatched(30 * self.num_rounds, True, 1)
        test = SelfBatched(20, False, 2)
        self.test_loaders.append(test)
        return self.train_loader, test

    @staticmethod
    def get_loss():
        return F.cross_entropy

    @staticmethod
    def get_transform():
        return None

    @staticmethod
    def get_normalization_transform():
        return None

    @set_default_from_args("backbone")
    def get_backbone():
        return "resnet18"

    @set_default_from_args("batch_size")
    def get_batch_size(self):
        return 8
