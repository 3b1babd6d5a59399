"""Learned augmentation policies for PIL images, as torchvision has them, under the names that dataset files import."""

import torch
from torchvision.transforms import AutoAugment, AutoAugmentPolicy
from torchvision.transforms import RandomErasing as RandomErasing  # part of this module's interface


class CIFAR10Policy(AutoAugment):
    """AutoAugment's CIFAR-10 policy (arXiv 1805.09501)."""

    def __init__(self, fillcolor=(128, 128, 128)):
        super().__init__(AutoAugmentPolicy.CIFAR10, fill=list(fillcolor))


class ImageNetPolicy(AutoAugment):
    """AutoAugment's ImageNet policy."""

    def __init__(self, fillcolor=(128, 128, 128)):
        super().__init__(AutoAugmentPolicy.IMAGENET, fill=list(fillcolor))


class SVHNPolicy(AutoAugment):
    """AutoAugment's SVHN policy."""

    def __init__(self, fillcolor=(128, 128, 128)):
        super().__init__(AutoAugmentPolicy.SVHN, fill=list(fillcolor))


class Cutout:
    """`n_holes` squares of `length` pixels set to 0, in one image or in each image of a batch (arXiv 1708.04552)."""

    takes_batches = True

    def __init__(self, n_holes: int = 1, length: int = 16):
        self.n_holes, self.length = n_holes, length

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        single = x.dim() == 3
        x = x[None] if single else x
        rows, columns = torch.arange(x.shape[-2]), torch.arange(x.shape[-1])
        keep = torch.ones(len(x), 1, *x.shape[-2:], dtype=torch.bool)
        for _ in range(self.n_holes):
            top = torch.randint(x.shape[-2], (len(x), 1)) - self.length // 2
            left = torch.randint(x.shape[-1], (len(x), 1)) - self.length // 2
            inside_rows = (rows >= top) & (rows < top + self.length)  # (B, H)
            inside_columns = (columns >= left) & (columns < left + self.length)  # (B, W)
            keep &= ~(inside_rows[:, None, :, None] & inside_columns[:, None, None, :])
        out = x * keep.to(x.device)
        return out[0] if single else out


KorniaAugCutout = Cutout
