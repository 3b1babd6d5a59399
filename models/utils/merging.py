"""Merging of task vectors, the differences (P,) of trained weights from a common start; see models/merge.py."""

import torch
from torch import Tensor


def larger(a: Tensor, b: Tensor) -> Tensor:
    """The value of larger magnitude at each place."""
    return torch.where(b.abs() > a.abs(), b, a)


def trimmed(vector: Tensor, keep: float) -> Tensor:
    """The `keep` share of values of largest magnitude, 0 elsewhere."""
    dropped = len(vector) - max(1, round(keep * len(vector)))
    if dropped <= 0:
        return vector
    return vector.where(vector.abs() > vector.abs().kthvalue(dropped).values, vector.new_zeros(()))


def ties(vectors: list[Tensor], keep: float) -> Tensor:
    """Trim each vector, elect a sign at each place by the sum, average the values of that sign."""
    kept = torch.stack([trimmed(vector, keep) for vector in vectors])
    agreeing = kept * (kept.sign() == kept.sum(0).sign())
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
