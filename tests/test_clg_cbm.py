"""CLG-CBM: concepts of --descriptions, their choice, the alignment, old features and frozen heads by hand."""

import pytest
import torch
from scipy.spatial.distance import mahalanobis
from torch.nn.functional import cross_entropy, normalize

from models.utils.concepts import alignment, choose, distances, unlike
from tests import contract
from utils.errors import UserError


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_alignment_by_loops():
    a, b = drawn(5, 3), drawn(5, 3, seed=1)
    each = []
    for k in range(3):
        p, q = a[:, k] ** 3, b[:, k] ** 3
        each.append(float(p @ q / p.norm() / q.norm()))
    assert float(alignment(a, b)) == pytest.approx(-sum(each) / 3, rel=1e-5)
    assert float(alignment(7 * b, b)) == pytest.approx(-1)


def test_no_concept_is_chosen_twice():
    texts = normalize(drawn(6, 4), dim=1)
    rows, taken = torch.stack([3 * texts[2], texts[2], 0.5 * texts[5], texts[2]]), []
    for row in rows:
        order = (texts @ row).argsort(descending=True).tolist()
        taken.append(next(n for n in order if n not in taken))
    assert choose(rows, texts).tolist() == taken and taken[0] == 2 and len(set(taken)) == 4


def test_distances_are_those_of_scipy():
    """And their power is that of --division_power."""
    texts, rows = drawn(6, 4), drawn(3, 4, seed=1)
    centred = texts - texts.mean(0)
    cov = centred.T @ centred / 6
    inverse = torch.linalg.inv(cov + 0.1 * cov.trace() / 4 * torch.eye(4)).numpy()
    each = [mahalanobis(r.numpy(), texts.mean(0).numpy(), inverse) for r in rows]
    torch.testing.assert_close(distances(rows, texts), torch.tensor(each).float(), atol=1e-3, rtol=1e-3)
    mean = sum(mahalanobis(t.numpy(), texts.mean(0).numpy(), inverse) for t in texts) / 6
    wanted = sum(abs((d / mean - 1) ** 3) for d in each) / 3
    assert float(unlike(rows, texts, 3)) == pytest.approx(wanted, rel=1e-2)


@pytest.fixture(scope="module")
def begun():
    """A model whose second task has begun."""
    with contract.toys():
        toy = contract.run("clg-cbm", stop_after=0, pool=1)
        toy.dataset.get_data_loaders()
        toy.model.meta_begin_task(toy.dataset)
    model = toy.model
    features, labels = model.labeled(toy.dataset)
    model.begin(normalize(features, dim=1), labels, 2)
    return model, normalize(features, dim=1), labels


def test_texts_of_the_task_alone_are_candidates(begun):
    model, *_ = begun
    own = {row for c in (3, 4) for row in model.bank_of[c]}
    assert set(model.candidates.tolist()) == own - set(model.concepts.tolist())
    assert len(model.concepts) == 3 and {int(c) for c in model.concepts} <= {
        r for c in range(3) for r in model.bank_of[c]
    }


@torch.no_grad()
def test_old_features_are_moved_and_drawn(begun):
    model, features, labels = begun
    for old in range(3):
        near = torch.stack([normalize(features[labels == c].mean(0), dim=0) @ model.names[old] for c in (3, 4)])
        assert int(model.donors[old]) == int(near.argmax())
    torch.manual_seed(0)
    found, own = model.old_features()
    assert own[:3].tolist() == [0, 1, 2] and len(own) == 5 and len(set(own[3:].tolist())) == 2
    for old in range(3):
        donor = 3 + int(model.donors[old])
        shift = model.means[old] - features[labels == donor].mean(0)
        gaps = (features[labels == donor] + shift - found[old]).norm(dim=1)
        assert float(gaps.min()) < 1e-4
    mean = torch.stack([model.gaussians.rows["mean"][int(c)] for c in own[3:]])
    assert float((found[3:] - mean).norm(dim=1).max()) < 3


@torch.no_grad()
def test_the_loss_by_hand(begun, monkeypatch):
    model, features, labels = begun
    monkeypatch.setattr(model, "concepts", torch.cat([model.concepts, model.candidates[:2]]))
    model.heads.weight[3:5, :5] = drawn(2, 5)
    torch.manual_seed(3)
    found = float(model.main_loss(features[:4], labels[:4], None, 0))
    torch.manual_seed(3)
    old, own = model.old_features()
    x, y = torch.cat([features[:4], old]), torch.cat([labels[:4], own])
    inner = x @ model.explainer.weight[:5].T + model.explainer.bias[:5]
    wanted = cross_entropy(inner @ model.heads.weight[:5, :5].T + model.heads.bias[:5], y)
    concepts, new = model.bank[model.concepts], model.heads.weight[3:5, :5]
    wanted = wanted + alignment(inner[:4], features[:4] @ concepts.T)
    wanted = wanted + 0.001 * (0.99 * new.abs().sum() + 0.005 * (new**2).sum())
    assert found == pytest.approx(float(wanted), rel=1e-4)


def test_heads_of_older_tasks_do_not_move():
    with contract.toys():
        first = contract.run("clg-cbm", stop_after=0, pool=1, optim_wd=0.1).model
        last = contract.run("clg-cbm", stop_after=1, pool=1, optim_wd=0.1).model
    assert torch.equal(first.heads.weight[:3], last.heads.weight[:3]) and first.heads.weight[:3, :3].any()
    assert torch.equal(first.heads.bias[:3], last.heads.bias[:3])
    assert not last.heads.weight[:3, 3:].any() and last.heads.weight[3:5, :5].all()
    assert last.concepts[:3].tolist() == first.concepts.tolist() and len(set(last.concepts.tolist())) == 5


@torch.no_grad()
def test_explained_by_its_concepts_a_class_is_its_texts(begun, monkeypatch):
    model, features, _ = begun
    monkeypatch.setattr(model, "concepts", torch.tensor([model.bank_of[c][0] for c in range(5)]))
    saved = {k: v.clone() for k, v in model.state_dict().items()}
    model.explainer.weight[:5], model.heads.weight[:5, :5] = model.bank[model.concepts], torch.eye(5)
    model.explainer.bias.zero_()
    model.heads.bias.zero_()
    torch.testing.assert_close(model(3 * features), features @ model.bank[model.concepts].T, atol=1e-5, rtol=1e-4)
    model.load_state_dict(saved)


@pytest.mark.parametrize(
    "flags, part",
    [({"pool": 9}, "--pool 9: task 1 needs 27 concepts"), ({"descriptions": "no.json"}, "cannot be read")],
)
def test_too_few_texts(flags, part):
    with contract.toys(), pytest.raises(UserError, match=part):
        contract.run("clg-cbm", stop_after=0, **flags)


def test_descriptions_are_required():
    from models.utils.descriptions import descriptions

    with pytest.raises(UserError, match="--descriptions is missing"):
        descriptions(None, ["fish"])
