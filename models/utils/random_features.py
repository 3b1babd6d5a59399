"""Shared by regressions on frozen features: a fixed random layer, and sums that give the joint solution."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from models.utils.vlm_model import VLMModel
from utils.free_memory import require
from utils.randomness import generator

ROWS = 1024  # images whose random features are summed at once
COLUMNS = 1000  # columns of a symmetric sum that are computed at once


def add_gram(total: Tensor, rows: Tensor, factor: float = 1.0) -> None:
    """total (M, M) += factor * rows^T rows in place; only blocks on and below the diagonal are multiplied."""
    for start in range(0, len(total), COLUMNS):
        end = start + COLUMNS
        block = factor * (rows[:, start:].T @ rows[:, start:end])
        total[start:, start:end] += block
        total[start:end, end:] += block[COLUMNS:].T


def solve_ridge(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """(gram + ridge I)^-1 cross."""
    damped = gram.clone()
    damped.diagonal().add_(ridge)
    return torch.cholesky_solve(cross, torch.linalg.cholesky(damped))


class RandomFeatures(VLMModel):
    """h(x) = relu(W_r f(x)) of unit features f, W_r fixed; or f itself without a random layer."""

    random: Tensor | None = None  # W_r^T (D, M)

    def draw_layer(self, width: int, kind: str) -> int:
        """Draw W_r by the seed; returns the number of features: `width`, or for width 0 that of the frozen tower."""
        found = width or self.feature_dim
        require(3 * 8 * found**2, f"--rp_size {width}: the sums, their damped copy and its factor", "lower it")
        if width:
            rng, shape = generator(self.args.seed, "random layer"), (self.feature_dim, width)
            if kind == "normal":
                drawn = torch.randn(shape, generator=rng)
            else:  # as torch initializes a linear layer
                drawn = (2 * torch.rand(shape, generator=rng) - 1) * self.feature_dim**-0.5
            self.random = drawn.to(self.device)
        return found

    def prepare(self, features: Tensor) -> Tensor:
        """What the random layer reads (B, D)."""
        return normalize(features, dim=1)

    def hidden(self, features: Tensor) -> Tensor:
        """Random features (B, M) of raw image features (B, D)."""
        features = self.prepare(features)
        return features if self.random is None else (features @ self.random).relu()

    def hidden_parts(self, features: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Random features (B, M) and one-hot labels (B, C) of ROWS images at a time, in float64 on the CPU."""
        for part, own in zip(features.split(ROWS), labels.cpu().split(ROWS), strict=True):
            yield self.hidden(part).cpu().double(), one_hot(own, self.num_classes).double()
