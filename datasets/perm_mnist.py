"""MNIST in twenty tasks, each with its own pixel permutation"""

import torch

from datasets.utils.mnist_files import DomainMNIST
from utils.randomness import generator
from utils.settings import option


class PermutedMNIST(DomainMNIST):
    NAME = "perm-mnist"
    SETTING = "domain-il"

    def source_pixels(self, task: int) -> torch.Tensor:
        return torch.randperm(28 * 28, generator=generator(option(self.args, "seed", 0), self.NAME, task))
