"""K-means: Lloyd's steps for many groups at once (mixtures), and mini-batches with running counts (keys of prompts).

Mini-batches: Sculley, WWW 2010. With n_j the points that center j has taken so far and m_j those of the batch,

    n_j <- n_j + m_j,   c_j <- c_j + m_j / n_j (mean of the batch's points of j - c_j)

so a center is the mean of all points ever assigned to it. Initialization: k-means++ on a sample, the best of a few
draws.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

METRICS = ("l2", "cosine")
START_ROWS = 512  # points that k-means++ uses
STARTS = 3  # initializations; the one with the least inertia is used
DEAD_EVERY, DEAD_SHARE = 10, 0.01  # how often centers are checked, and the share of the largest count that is too few


def distances(x: Tensor, centres: Tensor, metric: str = "l2") -> Tensor:
    """Squared distances (..., N, K) of points (..., N, D) to centers (..., K, D); cosine: of both at unit length."""
    if metric == "cosine":
        x, centres = normalize(x, dim=-1), normalize(centres, dim=-1)
    return torch.cdist(x, centres, compute_mode="donot_use_mm_for_euclid_dist").square()


def nearest(x: Tensor, centres: Tensor, metric: str = "l2") -> Tensor:
    """Index (N,) of the nearest center; among equal ones the first."""
    return distances(x, centres, metric).argmin(-1)


def inertia(x: Tensor, centres: Tensor, metric: str = "l2") -> Tensor:
    """Mean squared distance of points to their nearest center."""
    return distances(x, centres, metric).amin(-1).mean()


def spread(x: Tensor, mask: Tensor, uniforms: Tensor) -> Tensor:
    """k-means++ of groups x (K, N, D) of which mask (K, N, 1) is real: centers (K, M, D) for uniforms (K, M).

    Each is a point drawn with a chance in proportion to its squared distance to those before; the first, and where all
    points lie on a center already (fewer distinct points than centers), one drawn evenly.
    """
    real = mask.squeeze(2).to(uniforms.dtype)  # (K, N)
    last = mask.squeeze(2).sum(1, keepdim=True) - 1
    weight, distance, centres = real, torch.full_like(real, torch.inf), []
    for u in uniforms.T:  # over centers, all groups at once
        total = weight.cumsum(1)
        pick = torch.searchsorted(total, u.unsqueeze(1) * total[:, -1:], right=True).minimum(last)
        centres.append(x.gather(1, pick.unsqueeze(2).expand(-1, -1, x.shape[2])))
        distance = distance.minimum((x - centres[-1]).square().sum(2))
        weight = distance * real
        weight = weight.where(weight.sum(1, keepdim=True) > 0, real)
    return torch.cat(centres, 1)


def assign(z: Tensor, centres: Tensor) -> Tensor:
    """One-hot membership of each feature in its nearest center, (K, N, M)."""
    near = torch.cdist(z, centres).argmin(2)
    return one_hot(near, centres.shape[1]).to(z.dtype)


def lloyd(z: Tensor, mask: Tensor, centres: Tensor, n_steps: int) -> Tensor:
    """k-means of all classes; a class stops when no center moves by 1e-3 (in units of the root mean variance)."""
    live = torch.ones(len(z), 1, 1, dtype=torch.bool, device=z.device)
    for _ in range(n_steps):
        member = assign(z, centres) * mask
        mass = member.sum(1).unsqueeze(2)  # (K, M, 1)
        moved = (member.mT @ z / mass.clamp(min=1)).where((mass > 0) & live, centres)  # an empty cluster stays
        live = live & ((moved - centres).norm(dim=2).amax(1).view(-1, 1, 1) >= 1e-3)
        centres = moved
        if not bool(live.any()):
            break
    return centres


def plus_plus(x: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """`spread` of one group of points: k of x (N, D)."""
    uniforms = torch.rand(1, k, generator=rng, dtype=torch.float64).to(x.device)
    every = torch.ones(1, len(x), 1, dtype=torch.bool, device=x.device)
    return spread(x[None].double(), every, uniforms)[0].to(x.dtype)


def update(centres: Tensor, counts: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Centers (K, D) and counts (K,) after a mini-batch of points (B, D); the arguments are not modified."""
    own = one_hot(nearest(batch, centres), len(centres)).to(batch.dtype)  # (B, K)
    members = own.sum(0)
    counts = counts + members
    shift = own.T @ batch - members[:, None] * centres  # m_j (batch mean - c_j); zero where j has no member
    return centres + shift / counts.clamp(min=1)[:, None], counts


def minibatch_kmeans(
    x: Tensor, k: int, rng: torch.Generator, iters: int = 50, batch_size: int = 32, metric: str = "l2"
) -> Tensor:
    """Centers (k, D) of points x (N, D), on the device of x.

    A center with hardly any points is moved to the point of the batch that is farthest from all centers. With the
    cosine metric points and centers have unit length (spherical k-means).
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
    """Centers with hardly any points move to the farthest points of the batch, one each, and restart their counts."""
    dead = counts < DEAD_SHARE * counts.max()  # (K,)
    alive = torch.where(dead, torch.inf, distances(batch, centres)).amin(1)  # (B,) distance to the nearest live center
    far = batch[alive.argsort(descending=True)]
    order = (dead.cumsum(0) - 1).clamp(0, len(batch) - 1)  # the n-th dead center takes the n-th farthest point
    return torch.where(dead[:, None], far[order], centres), torch.where(dead, torch.ones_like(counts), counts)


def mutual_information(a: Tensor, b: Tensor) -> float:
    """Normalized mutual information of two labelings (N,), I(a; b) / ((H(a) + H(b)) / 2): 0 if independent, 1 if equal
    up to names; 0 where either is constant."""
    joint = torch.zeros(int(a.max()) + 1, int(b.max()) + 1, dtype=torch.float64)
    joint.index_put_((a.cpu(), b.cpu()), torch.ones((), dtype=torch.float64), accumulate=True)
    p = joint / joint.sum()
    entropies = [-torch.xlogy(q, q).sum() for q in (p.sum(1), p.sum(0), p)]
    shared, mean = entropies[0] + entropies[1] - entropies[2], (entropies[0] + entropies[1]) / 2
    return float(shared / mean) if min(entropies[:2]) > 1e-12 else 0.0
