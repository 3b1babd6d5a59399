"""LwF.MC, ER with tricks, and X-DER without contrast or on a simplex: steps against plain loops."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.bic import fit_correction
from models.er_tricks import ErTricks
from models.lwf import Lwf
from models.lwf_mc import LwfMc
from models.xder_ce import XDerCe
from models.xder_rpc import XDerRpc
from tests.classic_toys import begin, build, some, train
from tests.test_classic_steps import WHOLE, XDER, mean_loss, value
from tests.toys import ToyDomains

TRICKS = {"elrd": 0.99, "bic_epochs": 20, "bic_lr": 0.1, **WHOLE}


def moved(model, x, y) -> float:
    """Loss of one step."""
    return value(model.meta_observe(x, y, x))


# LwF.MC


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_lwf_mc_targets_are_the_old_answers_and_the_label(decay):
    """Third task: a loop over images and the six seen classes."""
    model = build(LwfMc, wd_reg=decay)
    train(model), train(model), begin(model)
    old = copy.deepcopy(model.net).eval()
    with torch.no_grad():
        model.net.classifier.bias += torch.arange(6) / 3
    (x, y), total = some(model), 0.0
    z, before = model.net(x).detach().double(), old(x).detach().double()
    for i in range(len(x)):
        for c in range(6):
            target = 1 / (1 + math.exp(-float(before[i, c]))) if c < 4 else float(c == y[i])
            p = 1 / (1 + math.exp(-float(z[i, c])))
            total -= target * math.log(p) + (1 - target) * math.log(1 - p)
    square = sum(float(p.detach().square().sum()) for p in model.net.parameters())
    assert moved(model, x, y) == pytest.approx(total / (6 * len(x)) + decay * square, rel=1e-5)


def test_lwf_mc_answers_by_logits_and_keeps_no_image():
    model = build(LwfMc, wd_reg=0.0)
    train(model), train(model)
    x, _ = some(model)
    assert torch.equal(model(x), model.net(x)) and not hasattr(model, "buffer")
    assert set(model.stored_bytes()) == {"old_net"}
    assert not any(p.requires_grad for p in model.old_net.parameters())


def test_lwf_keeps_all_answers_where_each_domain_has_all_classes():
    model = build(Lwf, old_outputs="network", stream=ToyDomains)
    train(model), begin(model)
    old = copy.deepcopy(model.net).eval()
    with torch.no_grad():
        model.net.classifier.bias += torch.arange(6) / 3
    x, y = some(model)
    z, before = model.net(x).detach(), old(x).detach()
    p, q = (before / 2).softmax(1), (z / 2).softmax(1)
    divergence = sum(float(p[i, c] * (p[i, c] / q[i, c]).log()) for i in range(len(x)) for c in range(6)) / len(x)
    assert moved(model, x, y) == pytest.approx(mean_loss(z, y) + 0.5 * divergence, rel=1e-5)


# ER with tricks


def test_the_rate_falls_with_every_image_also_over_tasks():
    model = build(ErTricks, **TRICKS)
    begin(model)
    for n, after in ((5, 0), (3, 5), (4, 8)):
        x, y = some(model, n=n)
        moved(model, x, y)
        assert model.opt.param_groups[0]["lr"] == pytest.approx(0.1 * 0.99**after)
    model.meta_end_task(model.dataset)
    begin(model)
    moved(model, *some(model))
    assert model.opt.param_groups[0]["lr"] == pytest.approx(0.1 * 0.99**12)


def test_stream_and_memory_are_one_batch_of_plain_cross_entropy():
    model = build(ErTricks, **TRICKS)
    begin(model)
    first, second = some(model), some(model, seed=1)
    moved(model, *first)
    (x, y), now = (torch.cat(parts) for parts in zip(first, second, strict=True)), copy.deepcopy(model.net)
    assert moved(model, *second) == pytest.approx(mean_loss(now(x), y), rel=1e-5) and len(model.buffer) == 10
    step = torch.autograd.grad(F.cross_entropy(now(x), y), now.classifier.weight)[0]
    wanted = now.classifier.weight - 0.1 * 0.99**5 * step
    torch.testing.assert_close(model.net.classifier.weight, wanted, atol=1e-6, rtol=1e-4)


def test_scores_of_the_memory_are_the_last_probabilities():
    model = build(ErTricks, **TRICKS)
    begin(model)
    moved(model, *some(model))
    for seed in (1, 2):
        now = copy.deepcopy(model.net)
        moved(model, *some(model, seed=seed))
    kept, labels = model.buffer.get_all_data()
    wanted = now(kept).detach().double().softmax(1)[torch.arange(len(labels)), labels]
    found = model.buffer.sample_selection_fn.scores[: len(labels)]
    assert np.allclose(found, wanted.numpy(), atol=1e-6)


def test_what_is_replaced_is_known_or_of_a_large_class():
    """Half the share of the score, half the share of the class: by counting many draws."""
    model = build(ErTricks, **TRICKS | {"buffer_size": 4})
    images, labels = torch.rand(4, 1, 2, 3), torch.tensor([0, 0, 0, 1])
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4])
    model.buffer.add_data(examples=images, labels=labels, sample_selection_scores=scores)
    strategy = model.buffer.sample_selection_fn
    strategy.begin(4)
    shares = 0.5 * np.array([0.1, 0.2, 0.3, 0.4]) + 0.5 * np.array([3, 3, 3, 1]) / 10
    assert np.allclose(strategy.weights(), shares)


def test_the_bias_of_the_newest_classes_is_fitted_on_the_memory():
    model = build(ErTricks, **TRICKS)
    train(model)
    x, _ = some(model)
    assert torch.equal(model(x), model.net(x)), "one task has no old classes"
    train(model)
    model.eval()
    kept, labels = model.buffer.get_all_data()
    wanted = fit_correction(model.net(kept)[:, :4].detach(), labels, 3, 20, 0.1)
    torch.testing.assert_close(model.correction, wanted, atol=1e-4, rtol=1e-4)
    assert abs(float(wanted[0]) - 1) > 1e-3
    expected = model.net(x).detach().clone()
    expected[:, 3] = wanted[0] * expected[:, 3] + wanted[1]
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)
    begin(model)
    assert torch.equal(model(x), model.net(x)), "no correction while a task is trained"


# X-DER


def xder(method, **changes):
    """A method at its third task, with the whole memory in each draw."""
    model = build(method, alpha=0.5, beta=0.7, **WHOLE | XDER | changes)
    train(model), train(model), begin(model)
    return model


def test_xder_ce_is_xder_without_contrast():
    """Its loss has the groups of outputs, the stored logits and the margin, whatever lambd says."""
    model = xder(XDerCe, lambd=0.5)
    (x, y), (old, labels, logits, _) = some(model), model.buffer.get_all_data()
    now = model.net(old).detach()
    square = sum(float(d) ** 2 for d in (now - logits).flatten()) / now.numel()
    wanted = mean_loss(model.net(x), y, [4, 5]) + 0.5 * square + 0.7 * mean_loss(now, labels, range(4))
    assert moved(model, x, y) == pytest.approx(wanted, rel=1e-5)
    begin_first = build(XDerCe, **WHOLE | XDER | {"lambd": 0.5})
    begin(begin_first)
    x, y = some(begin_first)
    expected = mean_loss(begin_first.net(x), y, range(3))
    assert moved(begin_first, x, y) == pytest.approx(expected, rel=1e-5), "later outputs have no loss of their own"


def corners_by_hand(count: int) -> np.ndarray:
    """Unit corners of a simplex in count - 1 numbers, from its centred one in `count` numbers."""
    centred = np.eye(count) - 1 / count
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def test_xder_rpc_answers_by_the_corners_of_a_simplex():
    model = xder(XDerRpc)
    x, y = some(model)
    corners = model.corners.T.double().numpy()  # (6, 5)
    assert np.allclose(corners @ corners.T, corners_by_hand(6) @ corners_by_hand(6).T, atol=1e-6)
    z = model.net(x).detach().double()[:, :5]
    logits = torch.tensor([[float(row @ torch.tensor(corner)) for corner in corners] for row in z])
    assert torch.allclose(model(x).double(), logits.double(), atol=1e-5)
    old, labels, stored, _ = model.buffer.get_all_data()
    now = model(old).detach()
    square = sum(float(d) ** 2 for d in (now - stored).flatten()) / now.numel()
    wanted = mean_loss(logits, y, [4, 5]) + 0.5 * square + 0.7 * mean_loss(now, labels, range(4))
    assert moved(model, x, y) == pytest.approx(wanted, rel=1e-4)


def test_xder_rpc_memory_has_logits_of_the_corners_also_from_the_old_network():
    model = xder(XDerRpc, dp_weight=1.0)
    old, labels, stored, _ = model.buffer.get_all_data()
    newest = (labels == 3).nonzero().flatten()
    with torch.no_grad():
        assert torch.allclose(stored[newest], model(old[newest]), atol=1e-5)
        x, _ = some(model)
        assert float(model.similarity(x, model(x))) == pytest.approx(0, abs=1e-10)
        model.old_net.classifier.weight += torch.randn(6, 6)
        wanted = F.normalize(model.old_net(x)[:, :5] @ model.corners, dim=1)
        own = F.normalize(model(x), dim=1)
        expected = (own @ own.T - wanted @ wanted.T).square().mean()
        assert float(model.similarity(x, model(x))) == pytest.approx(float(expected), rel=1e-5)


def test_a_simplex_needs_two_corners():
    from utils.errors import UserError

    model = build(XDerRpc, **WHOLE | XDER)
    with pytest.raises(UserError, match="at least two classes"):
        model.dataset.N_CLASSES = 1
        XDerRpc(model.net, F.cross_entropy, model.args, None, model.dataset)
