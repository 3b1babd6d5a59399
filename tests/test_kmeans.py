"""Mini-batch k-means against Lloyd's algorithm with restarts, and its update by hand."""

import pytest
import torch
from scipy.cluster.vq import kmeans2

from utils.kmeans import distances, inertia, minibatch_kmeans, nearest, plus_plus, revive, spread, update


def blobs(n: int, k: int, d: int, apart: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    true = apart * torch.randn(k, d, generator=rng)
    return true[torch.arange(n) % k] + torch.randn(n, d, generator=rng), true


def lloyd(x: torch.Tensor, k: int) -> float:
    """Inertia of the best of ten full k-means."""
    found = (kmeans2(x.double().numpy(), k, minit="++", seed=s, iter=100)[0] for s in range(10))
    return min(float(inertia(x.double(), torch.from_numpy(c))) for c in found)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k, d, apart", [(3, 32, 1.5), (10, 64, 1.5), (3, 64, 0.0)])
def test_inertia_is_near_that_of_full_k_means(k, d, apart, seed):
    x, _ = blobs(1500, k, d, apart, seed)
    centres = minibatch_kmeans(x, k, torch.Generator().manual_seed(seed))
    assert float(inertia(x, centres)) <= 1.10 * lloyd(x, k)


@pytest.mark.parametrize("seed", range(5))
def test_well_separated_blobs_are_found(seed):
    x, true = blobs(900, 3, 16, 20.0, seed)
    centres = minibatch_kmeans(x, 3, torch.Generator().manual_seed(seed))
    spread = torch.cdist(true, true)[~torch.eye(3, dtype=torch.bool)].min()
    assert torch.cdist(true, centres).amin(1).max() < 0.1 * spread


def test_a_step_by_hand():
    centres, counts = torch.tensor([[0.0, 0.0], [10.0, 0.0]]), torch.tensor([2.0, 0.0])
    batch = torch.tensor([[3.0, 0.0], [1.0, 2.0], [12.0, 4.0]])
    new, n = update(centres, counts, batch)
    assert n.tolist() == [4.0, 1.0]
    # (2 * 0 + 3 + 1) / 4 and (2 * 0 + 0 + 2) / 4; the second center had no points, so it becomes its one point
    assert torch.allclose(new, torch.tensor([[1.0, 0.5], [12.0, 4.0]]))
    shuffled, m = update(centres, counts, batch[[2, 0, 1]])
    assert torch.allclose(shuffled, new) and torch.equal(m, n)


def test_running_counts_make_a_centre_the_mean_of_all_its_points():
    x, _ = blobs(64, 1, 5, 0.0)
    centres, counts = x[:1].clone(), torch.zeros(1)
    for part in x.split(16):
        centres, counts = update(centres, counts, part)
    assert torch.allclose(centres[0], x.mean(0), atol=1e-5) and counts.item() == 64


def test_nearest_is_the_least_distance_and_not_the_greatest():
    x, true = blobs(60, 4, 8, 5.0)
    far = (x[:, None] - true[None]).square().sum(-1)
    assert torch.equal(nearest(x, true), far.argmin(1)) and torch.allclose(distances(x, true), far, rtol=1e-4)
    assert not torch.equal(nearest(x, true), far.argmax(1))


def test_an_empty_cluster_makes_no_nan_and_moves_to_the_farthest_point():
    centres, counts = torch.tensor([[0.0], [1e6]]), torch.tensor([300.0, 0.0])
    batch = torch.tensor([[0.1], [-0.2], [7.0]])
    stepped, n = update(centres, counts, batch)
    assert stepped.isfinite().all() and stepped[1] == 1e6 and n[1] == 0
    moved, n = revive(stepped, n, batch)
    assert moved[1] == 7.0 and moved[0] == stepped[0] and n.tolist() == [303.0, 1.0]


def test_fewer_distinct_points_than_centres():
    x = torch.ones(40, 6)
    centres = minibatch_kmeans(x, 3, torch.Generator().manual_seed(0))
    assert torch.allclose(centres, torch.ones(3, 6)) and (nearest(x, centres) == 0).all()
    assert minibatch_kmeans(x[:1], 3, torch.Generator().manual_seed(0)).shape == (3, 6)


def test_spread_against_a_loop_over_groups_and_points():
    """Groups of several sizes at once; the last has two distinct points, so from the third center on draws are even."""
    draw = torch.Generator().manual_seed(0)
    sizes, x = (7, 4, 6), torch.randn(3, 7, 2, generator=draw, dtype=torch.float64)
    x[2] = torch.tensor([0, 0, 1, 0, 0, 1, 0], dtype=torch.float64)[:, None]
    mask = torch.arange(7)[None, :, None] < torch.tensor(sizes)[:, None, None]
    uniforms = torch.rand(3, 5, generator=draw, dtype=torch.float64)
    found = spread(x, mask, uniforms)
    for group, size in enumerate(sizes):
        chosen = []
        for u in uniforms[group].tolist():
            weights = [min((float((p - c).square().sum()) for c in chosen), default=1.0) for p in x[group, :size]]
            weights = weights if sum(weights) > 0 else [1.0] * size
            sums = [sum(weights[: i + 1]) for i in range(size)]
            chosen.append(x[group, next((i for i, s in enumerate(sums) if s > u * sums[-1]), size - 1)])
        assert torch.equal(found[group], torch.stack(chosen))
    assert len({tuple(c.tolist()) for c in found[2, 2:]}) == 2, "even draws meet both points"


def test_plus_plus_takes_one_point_of_each_far_blob():
    x, _ = blobs(300, 5, 8, 50.0)
    assert sorted((nearest(plus_plus(x, 5, torch.Generator().manual_seed(1)), x) % 5).tolist()) == [0, 1, 2, 3, 4]


def test_cosine_looks_at_directions_only():
    x, true = blobs(400, 3, 12, 8.0)
    lengths = torch.rand(400, 1, generator=torch.Generator().manual_seed(5)) * 9 + 0.5
    plain = minibatch_kmeans(x, 3, torch.Generator().manual_seed(0), metric="cosine")
    scaled = minibatch_kmeans(x * lengths, 3, torch.Generator().manual_seed(0), metric="cosine")
    assert torch.allclose(plain, scaled, atol=1e-5) and torch.allclose(plain.norm(dim=1), torch.ones(3))
    assert torch.equal(nearest(x * lengths, true, "cosine"), nearest(x, true * 3, "cosine"))


def test_one_seed_one_result():
    x, _ = blobs(200, 3, 4, 1.0)
    first, second, other = (minibatch_kmeans(x, 3, torch.Generator().manual_seed(s)) for s in (7, 7, 8))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_against_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    x, _ = blobs(1500, 3, 32, 1.5)
    theirs = cluster.MiniBatchKMeans(3, batch_size=32, n_init=3, random_state=0).fit(x.numpy()).cluster_centers_
    ours = minibatch_kmeans(x, 3, torch.Generator().manual_seed(0))
    assert float(inertia(x, ours)) <= 1.10 * float(inertia(x, torch.from_numpy(theirs)))


def test_the_best_of_the_starts_is_taken(monkeypatch):
    """Three starts of known inertia, and no step after them."""
    x = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
    starts = iter([torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [9.5]]), torch.tensor([[5.0], [5.0]])])
    monkeypatch.setattr("utils.kmeans.plus_plus", lambda sample, k, rng: next(starts))
    assert minibatch_kmeans(x, 2, torch.Generator().manual_seed(0), iters=0).tolist() == [[0.5], [9.5]]


def test_dead_centers_move_to_points_of_their_own():
    centres, counts = torch.tensor([[0.0], [50.0], [60.0]]), torch.tensor([500.0, 0.0, 1.0])
    moved, _ = revive(centres, counts, torch.tensor([[1.0], [8.0], [-3.0], [5.0]]))
    assert moved.flatten().tolist() == [0.0, 8.0, 5.0]
