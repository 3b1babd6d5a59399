"""MNIST in twenty tasks, each rotated by its own angle"""

import torch

from datasets.utils.mnist_files import DomainMNIST, rotated_pixels
from utils.randomness import generator
from utils.settings import option


class RotatedMNIST(DomainMNIST):
    NAME = "rot-mnist"
    SETTING = "domain-il"

    def angle(self, task: int) -> float:
        """Degrees counter-clockwise, uniform in [0, 180)."""
        return 180 * torch.rand((), generator=generator(option(self.args, "seed", 0), self.NAME, task)).item()

    def source_pixels(self, task: int) -> torch.Tensor:
        return rotated_pixels(torch.tensor([self.angle(task)]))[0]
