"""BatchNorm over the rows of all ranks, on any device: inside a dealt call its statistics are those of the batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.nn import functional as F

from utils.ranks.deal import dealing
from utils.ranks.group import gather, reduce, replaced, size

plain = F.batch_norm


def over(x: torch.Tensor) -> list[int]:
    """All dimensions but the channels."""
    return [0, *range(2, x.dim())]


class OverRanks(torch.autograd.Function):
    """x (B, C, ...) normalized by mean and variance over all ranks; also returns these, and the number of values."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps: float):
        var, mean = torch.var_mean(x, over(x), correction=0)
        own = torch.cat([x.new_tensor([x.numel() / x.shape[1]]), mean, var])
        n, mean, var = gather(own[None], [1] * size()).split([1, x.shape[1], x.shape[1]], dim=1)  # (ranks, ...)
        total = n.sum()
        center = (n * mean).sum(0) / total
        var = (n * (var + (mean - center).square())).sum(0) / total
        ctx.save_for_backward(x, weight, center, (var + eps).rsqrt(), total)
        ctx.mark_non_differentiable(center, var, total)
        return plain(x, center, var, weight, bias, False, 0.0, eps), center, var, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, *_):
        x, weight, center, scale, total = ctx.saved_tensors
        shape = (1, -1, *[1] * (x.dim() - 2))
        sums = torch.stack([dy.sum(over(x)), (dy * x).sum(over(x))])  # (2, C)
        own = torch.stack([sums[0], sums[1] - center * sums[0]])
        both = reduce(own.clone())
        a = scale if weight is None else scale * weight
        b = -a * scale.square() * both[1] / total
        c = -a * both[0] / total - b * center
        dx = torch.addcmul(c.view(shape), dy, a.view(shape)).addcmul_(x, b.view(shape))
        return dx, None if weight is None else own[1] * scale, None if weight is None else own[0], None


def batch_norm(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    """F.batch_norm, over all ranks inside a dealt call."""
    if not training or not dealing():
        return plain(x, running_mean, running_var, weight, bias, training, momentum, eps)
    y, mean, var, total = OverRanks.apply(x, weight, bias, eps)
    if running_mean is not None:  # through .data: an earlier call of this step may have saved them for its gradient
        running_mean.data.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.data.lerp_((var * (total / (total - 1))).to(running_var.dtype), momentum)
    return y


@contextlib.contextmanager
def batch_norm_over_ranks() -> Iterator[None]:
    """Inside, every BatchNorm of a dealt call looks at the rows of all ranks."""
    with replaced(F, "batch_norm", batch_norm):
        yield
