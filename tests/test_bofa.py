"""BOFA: the null space, the Gaussian, keys (--key_share) and the mean of weights by hand."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from models.bofa import Bofa
from models.utils.unprojected import SharedGaussian
from tests import contract


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_gaussian_is_a_discriminant_with_its_shrinkage():
    rows, labels = drawn(30, 6) + 3, torch.arange(30) % 4
    made = SharedGaussian(4, 6)
    for k in (0, 11):
        made.add(rows[k : k + 11] if not k else rows[11:], labels[k : k + 11] if not k else labels[11:])
    x = normalize(rows, dim=1).numpy()
    means = np.stack([x[labels == c].mean(0) for c in range(4)])
    cov = sum(np.outer(a, a) for a in x - means[labels]) / 29
    a = 6 / (29 + 6)  # 29 S + tr(S) I is 35 times (1 - a) S + a tr(S) / 6 I
    precision = 6 / 35 * np.linalg.inv((1 - a) * cov + a * np.trace(cov) / 6 * np.eye(6))
    weights, bias = made.solve()
    assert np.allclose(weights.numpy(), means @ precision, atol=1e-8)
    assert np.allclose(bias.numpy(), [-0.5 * m @ precision @ m for m in means], atol=1e-8)


@pytest.fixture(scope="module")
def toy():
    with contract.toys():
        return contract.run("bofa", stop_after=1, null_dim=100)


def rows_of(toy):
    loaders = toy.dataset.all_loaders(toy.model.change_transform)[0]
    return [toy.model.labeled(type("D", (), {"train_loader": loader})) for loader in loaders]


def test_what_old_tasks_use_does_not_change(toy):
    model = toy.model
    change = (model.basis @ model.low).detach()
    (z, _), *_ = rows_of(toy)
    used = torch.linalg.svd(z.double(), full_matrices=False).Vh  # 21 images span at most 21 directions
    assert len(used) + 100 < 128 + 1 and change.abs().max() > 1e-3
    assert (used.float() @ change).abs().max() < 1e-4 * change.abs().max() * 128
    torch.testing.assert_close(model.basis.T @ model.basis, torch.eye(100), atol=1e-4, rtol=0)


def test_the_mean_of_weights_and_of_second_moments(toy):
    model = toy.model
    with contract.toys():
        first = contract.run("bofa", stop_after=0, null_dim=100).model
    second = model.projection + model.basis @ model.low
    torch.testing.assert_close(first.mean_weight, first.full.detach())
    torch.testing.assert_close(model.mean_weight, ((first.mean_weight + second) / 2).detach())
    (z, _), (z2, _), *_ = rows_of(toy)
    torch.testing.assert_close(model.moment, (z.T @ z / len(z) + z2.T @ z2 / len(z2)) / 2, rtol=1e-4, atol=1e-3)


def test_b_starts_from_the_change_of_stage_one():
    with contract.toys():
        model = contract.run("bofa", stop_after=1, null_dim=100, null_epochs=0).model
    wanted = model.basis.T @ (model.full - model.projection)
    torch.testing.assert_close(model.low.detach(), wanted.detach())
    assert wanted.abs().max() > 1e-3


@torch.no_grad()
def test_keys_and_scores_by_hand(toy):
    model, x = toy.model, contract.images_of(toy)[0][:5]
    z = model.net.encode_unprojected(x)
    torch.testing.assert_close(z @ model.projection, model.net.encode_image(x), atol=1e-4, rtol=1e-4)
    (a, la), (b, lb), *_ = rows_of(toy)
    rows, labels = torch.cat([a, b]), torch.cat([la, lb])
    for share in (0.0, 0.3, 1.0):
        keys = []
        for c in range(5):
            image = normalize(rows[labels == c].mean(0) @ model.projection, dim=0)
            keys.append(normalize(share * image + (1 - share) * model.texts[c], dim=0))
        torch.testing.assert_close(model.keys(share), torch.stack(keys), atol=1e-4, rtol=1e-4)
    weights, bias = model.gaussian.solve()
    cos = normalize(z @ model.mean_weight, dim=1) @ model.keys(model.share).T
    gaussian = normalize(z.double(), dim=1) @ weights[:5].T + bias[:5]
    wanted = 0.5 * model.net.logit_scale * cos + 0.5 * gaussian.float()
    torch.testing.assert_close(model(x), wanted, atol=2e-3, rtol=1e-3)


@torch.no_grad()
def test_the_share_names_most_images_right(toy, monkeypatch):
    model = toy.model
    (z, labels), *_ = rows_of(toy)
    monkeypatch.setattr(model, "_n_seen_classes", 3)
    right = {
        s / 20: int((model.logits(z @ model.projection, model.keys(s / 20)).argmax(1) == labels).sum())
        for s in range(21)
    }
    best = model.choose_share(z, labels)
    assert right[round(best, 2)] == max(right.values()) and len(set(right.values())) > 1
    assert best == pytest.approx(min(s for s, n in right.items() if n == max(right.values())))


def test_each_task_starts_at_the_frozen_projection(monkeypatch):
    starts, real = [], Bofa.train_on

    def train_on(self, name, *args):
        starts.append((name, self.full.detach().clone()))
        real(self, name, *args)

    monkeypatch.setattr(Bofa, "train_on", train_on)
    with contract.toys():
        model = contract.run("bofa", stop_after=1, key_share=0.35).model
    assert model.share == 0.35 and [name for name, _ in starts] == ["projection", "projection", "null space"]
    assert all(torch.equal(start, model.projection) for _, start in starts[:2])
    assert not torch.equal(starts[2][1], model.projection)
