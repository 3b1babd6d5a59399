"""RAPF: the fusion of weights, hard pairs, the hinge and pseudo-features by hand."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from models.rapf import fuse, hard_pairs, hinge
from tests import contract
from utils.generative.gaussians import FullGaussian, ShrunkGaussian


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("bias", [0.0, 0.6])
def test_fusion_number_by_number(bias):
    old, new = drawn(5, 5), drawn(5, 5, seed=1)
    u, s, vt = np.linalg.svd(old.numpy())
    before, after = np.diag(s) @ vt, u.T @ new.numpy()
    largest, mixed = np.abs(after - before).max(), np.zeros((5, 5))
    for i in range(5):
        for j in range(5):
            share = min(1.0, abs(after[i, j] - before[i, j]) / largest + bias)
            mixed[i, j] = after[i, j] * share + before[i, j] * (1 - share)
    assert np.allclose(fuse(old, new, bias).numpy(), u @ mixed, atol=1e-10)


def test_limits_of_the_fusion():
    old, new = drawn(5, 5), drawn(5, 5, seed=1)
    torch.testing.assert_close(fuse(old, new, 1.0), new, atol=1e-10, rtol=0)
    assert torch.equal(fuse(old, old, 0.3), old), "no 0 / 0 where nothing moved"
    far = old.clone()
    far[0] += 1e-9
    assert (fuse(old, far, 0.0) - old).abs().max() <= 1e-9


def test_hard_pairs_by_loops():
    texts = normalize(drawn(6, 3), dim=1)
    found = {tuple(pair) for pair in hard_pairs(texts, 4, 1.2).T.tolist()}
    wanted = {(i, j) for i in range(4) for j in (4, 5) if float((texts[i] - texts[j]).norm()) < 1.2}
    assert found == wanted and 0 < len(found) < 8
    assert hard_pairs(texts, 0, 1.2).shape == (2, 0)


def test_hinge_by_loops():
    adapted, own, other = normalize(drawn(2, 3, 4), dim=2), normalize(drawn(2, 4, seed=1), dim=1), drawn(2, 4, seed=2)
    other = normalize(other, dim=1)
    each = [max(0, 0.1 - float(a @ own[p]) + float(a @ other[p])) for p in range(2) for a in adapted[p]]
    assert float(hinge(adapted, own, other)) == pytest.approx(np.mean(each)) and 0 in each


def test_shrinkage_of_a_covariance():
    x = drawn(7, 5)
    made = ShrunkGaussian()
    made.fit({0: x})
    cov = np.cov(x.numpy().T)
    variance, between = np.diag(cov).mean(), cov[~np.eye(5, dtype=bool)].mean()
    wanted = cov + (1 + 1e-3) * variance * np.eye(5) + between * (1 - np.eye(5))
    low = torch.tril_indices(5, 5)
    factor = torch.zeros(5, 5, dtype=torch.float64)
    factor[low[0], low[1]] = made.rows["factor"][0]
    assert np.allclose((factor @ factor.T).numpy(), wanted, atol=1e-10)


@pytest.fixture(scope="module")
def toy():
    with contract.toys():
        return contract.run("rapf", stop_after=1)


def test_the_loss_of_a_step_by_hand(toy, monkeypatch):
    model, x, y = toy.model, drawn(4, 128, dtype=torch.float32), torch.tensor([3, 4, 3, 4])
    pairs = torch.tensor([[0, 2], [3, 4]])
    monkeypatch.setattr(model, "pairs", pairs)
    monkeypatch.setattr(model, "queue", torch.tensor([2, 0, 1]))
    monkeypatch.setattr(model, "per_step", 2)
    torch.manual_seed(0)
    found = float(model.loss_of(x, y, None, 0).detach())
    torch.manual_seed(0)
    old = model.gaussians.sample(torch.tensor([2, 0]), 2)
    rows, labels = torch.cat([x, *old]), torch.cat([y, torch.tensor([2, 2, 0, 0])])
    adapted = normalize(rows @ model.adapter.weight.T, dim=1)
    expected = cross_entropy(model.net.logit_scale * adapted @ model.texts[:5].T, labels)
    hard = model.gaussians.sample(pairs[0], 4)
    for p, (i, j) in enumerate(pairs.T.tolist()):
        a = normalize(hard[p] @ model.adapter.weight.T, dim=1)
        expected += (0.1 - a @ model.texts[i] + a @ model.texts[j]).relu().mean() / 2
    assert found == pytest.approx(float(expected.detach()), rel=1e-4)


def test_every_old_class_passes_once_per_epoch(toy):
    model = toy.model
    model.begin_pass(25)
    steps = -(-25 // model.args.batch_size)
    passed = [c for n in range(steps) for c in model.queue[n * model.per_step : (n + 1) * model.per_step].tolist()]
    assert sorted(passed) == list(range(model.n_past_classes)) and model.n_past_classes == 3


def test_gaussians_are_of_raw_features(toy):
    features, labels = toy.model.labeled(toy.dataset)
    rows = toy.model.gaussians.rows["mean"]
    torch.testing.assert_close(rows[3], features[labels == 3].mean(0), atol=1e-5, rtol=1e-4)
    assert isinstance(toy.model.gaussians, FullGaussian) and toy.model.gaussians.row_class == list(range(5))


def test_the_adapter_is_fused_after_the_second_task(toy, monkeypatch):
    import models.rapf as file

    calls = []
    real = file.fuse
    monkeypatch.setattr(
        file, "fuse", lambda old, new, bias: calls.append((old.clone(), new.clone())) or real(old, new, bias)
    )
    with contract.toys():
        run = contract.run("rapf", stop_after=1)
        first = contract.run("rapf", stop_after=0)
    ((old, new),) = calls
    assert torch.equal(old, first.model.adapter.weight) and not torch.equal(old, new)
    torch.testing.assert_close(run.model.adapter.weight, real(old, new, 0.6))
