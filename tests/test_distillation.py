"""The distillation term against a loop over rows, and against hand-computed numbers."""

import math

import pytest
import torch

from utils.distillation import soft_divergence


def kl(teacher, given, T):
    p, q = ([math.exp(v / T) / sum(math.exp(w / T) for w in row) for v in row] for row in (teacher, given))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_soft_divergence_is_the_mean_over_rows_of_a_kl_without_a_factor():
    teacher, given = [[0.0, math.log(3)], [1.0, 1.0]], [[0.0, 0.0], [2.0, 2.0]]
    by_hand = (0.25 * math.log(0.5) + 0.75 * math.log(1.5)) / 2  # (1/4, 3/4) against (1/2, 1/2), and nothing
    assert float(soft_divergence(torch.tensor(given), torch.tensor(teacher), 1.0)) == pytest.approx(by_hand, rel=1e-5)
    draw = torch.Generator().manual_seed(0)
    a, b = (3 * torch.randn(4, 5, generator=draw) for _ in range(2))
    slow = sum(kl(p, q, 2.5) for p, q in zip(a.tolist(), b.tolist(), strict=True)) / 4
    assert float(soft_divergence(b, a, 2.5)) == pytest.approx(slow, rel=1e-5)
