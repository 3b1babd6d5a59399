"""K-means for keys of prompts and domains: mini-batch updates with running counts, in one tensor call per step.

Sculley, WWW 2010. With n_j the points that centre j has taken so far and m_j those of the batch,

    n_j <- n_j + m_j,   c_j <- c_j + m_j / n_j (mean of the batch's points of j - c_j)

so a centre is the mean of every point it ever took. Start: k-means++ on a sample, the best of a few draws.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

METRICS = ("l2", "cosine")
START_ROWS = 512  # points that k-means++ looks at
STARTS = 3  # draws of the start; the one of the least inertia is taken
DEAD_EVERY, DEAD_SHARE = 10, 0.01  # how often centres are checked, and the share of the largest count that is too few


def distances(x: Tensor, centres: Tensor, metric: str = "l2") -> Tensor:
    """Squared distances (..., N, K) of points (..., N, D) to centres (..., K, D); cosine: of both at unit length."""
    if metric == "cosine":
        x, centres = normalize(x, dim=-1), normalize(centres, dim=-1)
    return torch.cdist(x, centres, compute_mode="donot_use_mm_for_euclid_dist").square()


def nearest(x: Tensor, centres: Tensor, metric: str = "l2") -> Tensor:
    """Index (N,) of the nearest centre; among equal ones the first."""
    return distances(x, centres, metric).argmin(-1)


def inertia(x: Tensor, centres: Tensor, metric: str = "l2") -> Tensor:
    """Mean squared distance of points to their nearest centre."""
    return distances(x, centres, metric).amin(-1).mean()


def plus_plus(x: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """k-means++: points (k, D) of x, each drawn with a chance in proportion to its squared distance to those before.

    Where all points coincide with a centre already (fewer distinct points than k), points are drawn evenly.
    """
    picks = torch.rand(k, generator=rng, dtype=torch.float64).to(x.device)
    chosen = [int(picks[0] * len(x))]
    closest = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    for u in picks[1:]:
        closest = torch.minimum(closest, distances(x, x[chosen[-1:]])[:, 0].double())
        weight = closest if closest.sum() > 0 else torch.ones_like(closest)
        total = weight.cumsum(0)
        chosen.append(int(torch.searchsorted(total, u * total[-1], right=True).clamp(max=len(x) - 1)))
    return x[chosen].clone()


def update(centres: Tensor, counts: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (K, D) and counts (K,) after a mini-batch of points (B, D); the arguments stay as they are."""
    own = torch.nn.functional.one_hot(nearest(batch, centres), len(centres)).to(batch.dtype)  # (B, K)
    members = own.sum(0)
    counts = counts + members
    shift = own.T @ batch - members[:, None] * centres  # m_j (batch mean - c_j); zero where j has no member
    return centres + shift / counts.clamp(min=1)[:, None], counts


def minibatch_kmeans(
    x: Tensor, k: int, rng: torch.Generator, iters: int = 50, batch_size: int = 32, metric: str = "l2"
) -> Tensor:
    """Centres (k, D) of points x (N, D), on the device of x.

    A centre that hardly takes any points is put on the point of the batch farthest from all centres. With the cosine
    metric points and centres have unit length (spherical k-means).
    """
    unit = metric == "cosine"
    x = normalize(x, dim=1) if unit else x
    sample = x[torch.randperm(len(x), generator=rng)[:START_ROWS].to(x.device)]
    starts = [plus_plus(sample, k, rng) for _ in range(STARTS)]
    centres = min(starts, key=lambda c: float(inertia(sample, c)))
    counts = torch.zeros(k, device=x.device, dtype=x.dtype)
    size = min(batch_size, len(x))
    for step in range(iters):
        batch = x[torch.randperm(len(x), generator=rng)[:size].to(x.device)]
        centres, counts = update(centres, counts, batch)
        if (step + 1) % DEAD_EVERY == 0 and step + 1 < iters:
            centres, counts = revive(centres, counts, batch)
        centres = normalize(centres, dim=1) if unit else centres
    return centres


def revive(centres: Tensor, counts: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Centres with hardly any points move to the farthest points of the batch, one each, and start to count anew."""
    dead = counts < DEAD_SHARE * counts.max()  # (K,)
    alive = torch.where(dead, torch.inf, distances(batch, centres)).amin(1)  # (B,) distance to the nearest live centre
    far = batch[alive.argsort(descending=True)]
    order = (dead.cumsum(0) - 1).clamp(0, len(batch) - 1)  # the n-th dead centre takes the n-th farthest point
    return torch.where(dead[:, None], far[order], centres), torch.where(dead, torch.ones_like(counts), counts)
