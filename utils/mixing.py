"""CutMix (arXiv 1905.04899) and mixup (arXiv 1710.09412): images mixed from two, with the share of each.

Choices of mixup [the name is all that is documented]: a list of two (inputs, labels) pairs is mixed pairwise, the
first with at least half the weight; a batch and its labels are mixed within themselves, in the form of `cutmix_data`.
"""

import numpy as np
import torch


def rand_bbox(size, lam: float) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2) of a random box covering 1 - lam of an image of shape (..., W, H), clipped to it."""
    width, height = size[-2], size[-1]
    side = (1 - lam) ** 0.5
    half_w, half_h = int(width * side) // 2, int(height * side) // 2
    x, y = np.random.randint(width), np.random.randint(height)
    return max(x - half_w, 0), max(y - half_h, 0), min(x + half_w, width), min(y + half_h, height)


def cutmix(images: torch.Tensor, labels: torch.Tensor, alpha: float):
    """Images (B, C, W, H) with one box from others, the labels of those, and the share of pixels that is their own."""
    x1, y1, x2, y2 = rand_bbox(images.shape, np.random.beta(alpha, alpha))
    order = torch.randperm(len(images)).to(images.device)
    mixed = images.clone()
    mixed[..., x1:x2, y1:y2] = images[order][..., x1:x2, y1:y2]
    return mixed, labels[order], 1 - (x2 - x1) * (y2 - y1) / (images.shape[-2] * images.shape[-1])


def cutmix_data(x: torch.Tensor, y: torch.Tensor, alpha: float = 1.0, cutmix_prob: float = 0.5):
    """(images, labels a, labels b, share of a), with probability `cutmix_prob` by CutMix."""
    if alpha <= 0 or np.random.rand() > cutmix_prob:
        return x, y, y, 1.0
    mixed, other, share = cutmix(x, y, alpha)
    return mixed, y, other, share


def mixup(data, labels=None, alpha: float = 1.0):
    """mixup([(x1, y1), (x2, y2)], alpha=a): (x, y). mixup(x, y, a): (x, labels a, labels b, share of a)."""
    if isinstance(data, (list, tuple)):
        alpha = alpha if labels is None else float(labels)  # mixup(pairs, a)
        (first, of_first), (second, of_second) = data
        share = np.random.beta(alpha, alpha) if alpha > 0 else 1.0
        share = max(share, 1 - share)
        return tuple(share * a + (1 - share) * b for a, b in ((first, second), (of_first, of_second)))
    share = np.random.beta(alpha, alpha) if alpha > 0 else 1.0
    order = torch.randperm(len(data), device=data.device)
    return share * data + (1 - share) * data[order], labels, labels[order], share
