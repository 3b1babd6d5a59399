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


def attended_cosines(query: torch.Tensor, attention: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """cos(q * a_m, k_m): (B, L, M) for queries (B, D), attentions and keys (L, M, D) or keys (M, D)."""
    along = torch.einsum("bd,lmd->blm", query, attention * normalize(keys, dim=-1))
    size = torch.einsum("bd,lmd->blm", query.square(), attention.square())
    return along / size.clamp(min=1e-24).sqrt()
