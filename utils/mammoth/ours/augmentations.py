"""Augmentations of batches that method files import: crops, flips, CutMix, repeated views."""

import torch
from torchvision import transforms as T

from utils.batch_transforms import BatchTransform, RandomCrop, RandomFlip, RandomGray
from utils.memory.buffer import apply
from utils.mixing import cutmix_data, rand_bbox

__all__ = [
    "normalize",
    "random_flip",
    "random_crop",
    "random_grayscale",
    "strong_aug",
    "soft_aug",
    "apply_transform",
    "rand_bbox",
    "cutmix_data",
    "RepeatedTransform",
    "DoubleCompose",
    "DoubleTransform",
    "CustomRandomCrop",
    "CustomRandomHorizontalFlip",
]


def apply_transform(x: torch.Tensor, transform, autosqueeze: bool = False) -> torch.Tensor:
    """A transform on a batch: at once if it takes batches, else image by image."""
    out = apply(transform, x)
    return out.squeeze(0) if autosqueeze and len(out) == 1 else out


def normalize(x: torch.Tensor, mean, std) -> torch.Tensor:
    mean, std = (torch.as_tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (mean, std))
    return (x - mean) / std


def _drawn(operation, x: torch.Tensor) -> torch.Tensor:
    return operation.apply(x, torch.rand(len(x), operation.n_random, device=x.device))


def random_flip(x: torch.Tensor) -> torch.Tensor:
    """Each image mirrored with probability 1/2."""
    return _drawn(RandomFlip(0.5), x)


def random_crop(x: torch.Tensor, padding: int) -> torch.Tensor:
    """Each image moved by up to `padding` pixels, zeros coming in."""
    return _drawn(RandomCrop(tuple(x.shape[-2:]), padding), x)


def random_grayscale(x: torch.Tensor, prob: float = 0.2) -> torch.Tensor:
    return _drawn(RandomGray(prob), x)


def soft_aug(size: int, mean, std):
    """Crop, flip, normalization, for a batch of tensors in [0, 1]."""
    from utils.batch_transforms import Normalize

    return BatchTransform([RandomCrop((size, size), size // 8), RandomFlip(0.5), Normalize(mean, std)])


class strong_aug:  # the name that files import
    """Two independent views of a batch: resized crop, flip, color jitter, gray, normalization."""

    takes_batches = True

    def __init__(self, size: int, mean, std):
        self.view = T.Compose(
            [
                T.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
                T.RandomHorizontalFlip(),
                T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                T.RandomGrayscale(0.2),
                T.Normalize(mean, std),
            ]
        )

    def __call__(self, x: torch.Tensor, flag: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([self.view(image) for image in x]), torch.stack([self.view(image) for image in x])


class RepeatedTransform:
    """Several transforms of the same batch, stacked in front: (len(transforms), B, ...)."""

    takes_batches = True

    def __init__(self, transforms_list, autosqueeze: bool = True):
        self.transforms = list(transforms_list)
        self.autosqueeze = autosqueeze

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.stack([apply(t, x) for t in self.transforms])
        return out.squeeze(0) if self.autosqueeze and len(self.transforms) == 1 else out


class DoubleTransform:
    """One transform on both members of a pair (image, map), each by itself."""

    def __init__(self, tf):
        self.tf = tf

    def __call__(self, img, other_img):
        return self.tf(img), self.tf(other_img)


class DoubleCompose:
    """Steps that take and give (image, map)."""

    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, img, other_img):
        for step in self.transforms:
            img, other_img = step(img, other_img)
        return img, other_img


class CustomRandomCrop(T.RandomCrop):
    """The same crop of an image and of the smaller maps in `other_img`, resized to the image's size for it."""

    def __init__(self, size, padding=0, resize: bool = False, min_resize_index=None):
        super().__init__(size, padding)
        self.resize, self.min_resize_index = resize, min_resize_index

    def __call__(self, img, other_img):
        if self.resize or self.min_resize_index is not None:
            from utils.errors import UserError

            raise UserError("CustomRandomCrop(resize=...) is not available; use maps of the image's size")
        both = super().__call__(torch.cat((img, other_img), dim=-3))
        return both[..., : img.shape[-3], :, :], both[..., img.shape[-3] :, :, :]


class CustomRandomHorizontalFlip(T.RandomHorizontalFlip):
    """The same flip of an image and of its map."""

    def __call__(self, img, other_img):
        return (img.flip(-1), other_img.flip(-1)) if torch.rand(1) < self.p else (img, other_img)
