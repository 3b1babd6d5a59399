"""BatchNorm with class-dependent scale and shift (arXiv 1707.00683): shared statistics, one row of both per class."""

import torch
from torch import nn


class _Conditional(nn.Module):
    def __init__(self, norm: type, num_features: int, num_classes: int):
        super().__init__()
        self.num_features, self.num_classes = num_features, num_classes
        self.bn = norm(num_features, affine=False)
        self.scale, self.shift = nn.Embedding(num_classes, num_features), nn.Embedding(num_classes, num_features)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (B, C, ...), y (B,) the class of each sample."""
        shape = (len(x), self.num_features, *[1] * (x.dim() - 2))
        return self.scale(y).view(shape) * self.bn(x) + self.shift(y).view(shape)


class ConditionalBatchNorm1d(_Conditional):
    def __init__(self, num_features: int, num_classes: int):
        super().__init__(nn.BatchNorm1d, num_features, num_classes)


class ConditionalBatchNorm2d(_Conditional):
    def __init__(self, num_features: int, num_classes: int):
        super().__init__(nn.BatchNorm2d, num_features, num_classes)
