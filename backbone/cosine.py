"""A linear classifier on the unit sphere."""

import torch
from torch import nn
from torch.nn.functional import linear, normalize


class CosineLinear(nn.Module):
    """`scale` times the cosine of features (B, D) with each row of `weight` (C, D); the scale may be learned."""

    def __init__(self, in_features: int, out_features: int, scale: float = 1.0, learn_scale: bool = True):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        bound = in_features**-0.5
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.tensor(float(scale)), requires_grad=learn_scale)

    def cosines(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C)"""
        return linear(normalize(x, dim=-1), normalize(self.weight, dim=-1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.cosines(x)
