"""Concepts in words: which of them a network's rows stand for, and how well activations agree with them."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


def alignment(activations: Tensor, wanted: Tensor) -> Tensor:
    """Minus the mean over concepts of the cosine over the batch of cubed activations (B, K) with those wanted."""
    return -(normalize(activations**3, dim=0) * normalize(wanted**3, dim=0)).sum(0).mean()


def choose(rows: Tensor, texts: Tensor) -> Tensor:
    """For each row (P, D) in turn the unit text (M, D) with the largest cosine that none before has; indices (P,)."""
    cosines, found = normalize(rows, dim=1) @ texts.T, []
    free = torch.ones(len(texts), dtype=torch.bool, device=texts.device)
    for row in cosines:
        found.append(row.masked_fill(~free, -torch.inf).argmax())
        free[found[-1]] = False
    return torch.stack(found)


def distances(rows: Tensor, texts: Tensor) -> Tensor:
    """Mahalanobis distances (P,) of rows from the distribution of texts (M, D)."""
    cov = torch.cov(texts.T, correction=0)
    cov = cov + 0.1 * cov.diagonal().mean() * torch.eye(len(cov), device=cov.device)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(cov), (rows - texts.mean(0)).T, upper=False)
    return white.square().sum(0).sqrt()


def unlike(rows: Tensor, texts: Tensor, power: int) -> Tensor:
    """Mean of |(d(row) / mean d(text) - 1)^power|."""
    return ((distances(rows, texts) / distances(texts, texts).mean() - 1) ** power).abs().mean()


def gate(dim: int, rows: int, classes: int) -> nn.Sequential:
    """dim -> rows, without offset -> batch norm -> classes."""
    return nn.Sequential(nn.Linear(dim, rows, bias=False), nn.BatchNorm1d(rows), nn.Linear(rows, classes))
