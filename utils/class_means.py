"""Means of rows by class."""

import torch
from torch import Tensor


def class_means(rows: Tensor, labels: Tensor, n: int) -> Tensor:
    """Means over the images of each class: (M, N) -> (M, n), (M, N, D) -> (M, n, D); 0 for a class without images."""
    total = rows.new_zeros(rows.shape[0], n, *rows.shape[2:]).index_add_(1, labels, rows)
    count = torch.bincount(labels, minlength=n).clamp(min=1).to(rows.dtype)
    return total / count.view(1, n, *[1] * (rows.dim() - 2))
