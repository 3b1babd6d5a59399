"""DER, ER-ACE, X-DER, FDR, GDumb, GSS, HAL, MER and RPC: losses and memories against hand or slow computation."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import gss
from models.der import Der
from models.er import Er
from models.er_ace import ErAce
from models.fdr import Fdr, drift_of_answers
from models.gss import Gss
from models.hal import Hal
from models.mer import Mer
from models.rpc import simplex
from models.xder import XDer, contrast, implant
from tests.classic_toys import Both
from tests.toys import ToyStream, toy_args
from utils.errors import UserError
from utils.memory.gss import Buffer as GssBuffer
from utils.mixing import cutmix

FLAGS = {
    "task_free": False,
    "use_custom_classifier": False,
    "mammoth_compat": False,
    "batch_num": 1,
    "gss_minibatch_size": None,
    "gss_gradients": "classifier",
    "hal_lambda": 0.5,
    "gamma": 0.1,
    "anchor_steps": 5,
    "buffer_size": 18,
    "optim_mom": 0.0,
    "optim_wd": 0.0,
    "lambd": 0.0,
    "constr_eta": 0.1,
    "constr_margin": 0.3,
    "past_constraint": False,
    "future_constraint": True,
    "dp_weight": 0.0,
}


def build(method, **changes):
    args = toy_args(**{**FLAGS, **changes})
    torch.manual_seed(0)
    np.random.seed(0)
    stream = ToyStream(args)
    model = method(Both(6, stream.N_CLASSES), F.cross_entropy, args, None, stream)
    model.net.train()
    model.meta_begin_task(stream)
    return model


def batch(seed: int, n: int = 5, classes: int = 3):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 2, 3, generator=draw), torch.randint(0, classes, (n,), generator=draw)


def observe(model, seed: int, n: int = 5) -> float:
    x, y = batch(seed, n)
    return float(model.meta_observe(x, y, x))


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.net.parameters()])


def test_der_adds_the_mean_square_to_stored_logits():
    model = build(Der, minibatch_size=5, buffer_size=5)
    x, y = batch(0)
    stored = model.net(x).detach().double()
    observe(model, 0)
    now, (new, labels) = copy.deepcopy(model.net), batch(1)
    drift = np.mean(
        [(float(now(x).detach().double()[i, c]) - float(stored[i, c])) ** 2 for i in range(5) for c in range(6)]
    )
    expected = float(F.cross_entropy(now(new), labels).detach()) + 0.5 * drift
    assert observe(model, 1) == pytest.approx(expected, rel=1e-5)


def test_er_ace_opens_the_batch_and_the_unseen():
    model = build(ErAce)
    model.seen[[0, 3]] = True
    assert model.open_classes(torch.tensor([4, 4])).tolist() == [False, True, True, False, True, True]
    assert model.seen.tolist() == [True, False, False, True, True, False]
    model.args.mammoth_compat = True
    assert model.open_classes(torch.tensor([1])).tolist() == [False, True, False, False, True, True], (
        "4 is the highest seen"
    )


def test_er_ace_stream_gives_no_gradient_to_absent_old_classes():
    model = build(ErAce, task_free=True)
    model.seen[:3] = True
    before = model.net.classifier.weight.detach().clone()
    x, _ = batch(0)
    model.meta_observe(x, torch.full((5,), 3), x)
    moved = (model.net.classifier.weight.detach() - before).abs().amax(1) > 0
    assert moved.tolist() == [False, False, False, True, True, True]


def test_er_ace_cosine_classifier_has_scale_ten():
    model = build(ErAce, use_custom_classifier=True)
    x, _ = batch(0)
    rows = model.net.classifier.weight.detach()
    expected = 10 * torch.cosine_similarity(x.flatten(1)[:, None], rows[None], dim=2)
    assert torch.allclose(model.net(x), expected, atol=1e-5)


def test_fdr_distance_of_softmaxes():
    z = torch.log(torch.tensor([[0.5, 0.5, 1e-9], [0.2, 0.3, 0.5]]))
    h = torch.log(torch.tensor([[0.9, 0.1, 1e-9], [0.2, 0.3, 0.5]]))
    assert float(drift_of_answers(h, z)) == pytest.approx(0.5 * (0.4**2 + 0.4**2) ** 0.5, abs=1e-5)
    far = torch.tensor([[100.0, 0, 0]]), torch.tensor([[0, 100.0, 0]])
    assert float(drift_of_answers(*far)) == pytest.approx(2**0.5, abs=1e-5)
    same = z.clone().requires_grad_()
    drift_of_answers(same, z).backward()
    assert same.grad.isfinite().all(), "nothing changed yet: the root must not give NaN"


def test_fdr_memory_is_shared_by_tasks():
    stream = ToyStream(toy_args())
    model = Fdr(Both(6, 6), F.cross_entropy, toy_args(**FLAGS | {"buffer_size": 10}), None, stream)
    for expected in ([10], [5, 5], [4, 3, 3]):
        stream.get_data_loaders()
        model.meta_begin_task(stream)
        model.meta_end_task(stream)
        assert torch.bincount(model.buffer.data["task_labels"][: len(model.buffer)]).tolist() == expected
    with pytest.raises(UserError, match="at least 3"):
        Fdr(Both(6, 6), F.cross_entropy, toy_args(**FLAGS | {"buffer_size": 2}), None, stream)


def test_mer_with_full_steps_is_sgd_on_single_samples():
    model = build(Mer, beta=1.0, gamma=1.0)
    slow = build(Mer, beta=1.0, gamma=1.0)
    x, y = batch(0)
    model.meta_observe(x, y, x)
    for i in range(5):
        slow.opt.zero_grad()
        F.cross_entropy(slow.net(x[i : i + 1]), y[i : i + 1]).backward()
        slow.opt.step()
    assert torch.allclose(weights(model), weights(slow), atol=1e-6)


def test_mer_interpolates():
    start = weights(build(Mer, beta=1.0, gamma=1.0))
    ends = {}
    for beta, gamma in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.25), (1.0, 0.0)):
        model = build(Mer, beta=beta, gamma=gamma)
        observe(model, 0)
        ends[beta, gamma] = weights(model) - start
    full = ends[1.0, 1.0]
    assert torch.allclose(ends[0.5, 1.0], 0.5 * full, atol=1e-6) and torch.allclose(
        ends[1.0, 0.25], 0.25 * full, atol=1e-6
    )
    assert not ends[1.0, 0.0].abs().any()


def test_simplex():
    corners = simplex(7).double()
    gram = corners.T @ corners
    assert torch.allclose(gram.diagonal(), torch.ones(7).double(), atol=1e-6)
    assert torch.allclose(gram[~torch.eye(7, dtype=torch.bool)], torch.tensor(-1 / 6).double(), atol=1e-6)
    assert corners.shape == (6, 7) and simplex(2).abs().tolist() == [pytest.approx([1, 1])]


def test_cutmix_share_is_that_of_the_pixels():
    np.random.seed(0)
    torch.manual_seed(0)
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 9, 7).clone()
    for _ in range(20):
        mixed, other, share = cutmix(images, torch.arange(6), 1.0)
        assert ((mixed == images) | (mixed == other.view(6, 1, 1, 1))).all()
        own = (mixed == images).float().mean((1, 2, 3))[other != torch.arange(6)]
        assert torch.allclose(own, torch.full_like(own, share))
    assert float(images[3, 0, 0, 0]) == 3, "the batch itself stays"


def one_by_one(model, x, y) -> torch.Tensor:
    """(B, P) gradients of single samples, in eval mode."""
    model.net.eval()
    rows = []
    for i in range(len(y)):
        model.net.zero_grad()
        F.cross_entropy(model.net(x[i : i + 1]), y[i : i + 1]).backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.net.parameters()]))
    return torch.stack(rows)


def test_gss_gradients_are_those_of_single_samples(monkeypatch):
    monkeypatch.setattr(gss, "CHUNK", 2)
    model = build(Gss, gss_gradients="all")
    x, y = batch(0)
    slow = one_by_one(model, x, y)
    assert torch.allclose(model.gradients(x, y), slow, atol=1e-6)
    model.args.gss_gradients = "classifier"  # of this net the same numbers, the bias at the end of each row
    fast = model.gradients(x, y).view(5, 6, 7)
    assert torch.allclose(torch.cat([fast[..., :6].flatten(1), fast[..., 6]], dim=1), slow, atol=1e-6)


def test_gss_scores():
    """2 for a sample whose gradient is that of the memory, and never outside 0 to 2."""
    model = build(Gss, minibatch_size=1)
    x, y = batch(0, 1)
    assert model.buffer.scores_of(x, y).tolist() == pytest.approx([0.1])
    model.buffer.add_data(examples=x, labels=y)
    assert model.buffer.scores[0] == pytest.approx(0.1)
    assert model.buffer.scores_of(x, y).tolist() == pytest.approx([2], abs=1e-5)
    scores = model.buffer.scores_of(*batch(1, 30))
    assert float(scores.min()) >= 0 and float(scores.max()) <= 2 + 1e-5 and float(scores.std()) > 0.1


def test_gss_memory_asks_older_models_for_single_gradients():
    """Mammoth's form: `get_grads` of a batch, called sample by sample."""
    model = build(Gss, gss_gradients="all", minibatch_size=3)
    older = type("Older", (), {"get_grads": lambda self, x, y: model.gradients(x, y).mean(0)})()
    x, y = batch(0, 6)
    assert torch.allclose(GssBuffer(4, "cpu", 3, older).gradients(x, y), model.gradients(x, y), atol=1e-6)


def test_gss_replaces_in_proportion_to_scores(monkeypatch):
    """Only new samples with c < 1 enter; place i is taken with probability s_i / sum(s) * s_i / (s_i + c)."""
    np.random.seed(0)
    counts = np.zeros(3)
    for _ in range(600):
        buffer = GssBuffer(3)
        buffer.add_data(examples=torch.zeros(3, 1, 2, 3), labels=torch.zeros(3).long())
        buffer.scores[:] = 0.1, 0.5, 1.4
        monkeypatch.setattr(buffer, "scores_of", lambda examples, labels: np.array([0.5, 1.2]))
        buffer.add_data(torch.ones(2, 1, 2, 3), torch.tensor([1, 2]))
        counts += (buffer.labels == 1).numpy()
        assert not (buffer.labels == 2).any() and (buffer.scores[(buffer.labels == 1).numpy()] == 0.5).all()
    s = np.array([0.1, 0.5, 1.4])
    expected = s / s.sum() * s / (s + 0.5)
    assert np.abs(counts / 600 - expected).max() < 4 * (0.25 / 600) ** 0.5


def test_hal_with_weight_zero_is_replay_on_its_ring():
    hal, er = build(Hal, hal_lambda=0.0), build(Er)
    er.buffer = copy.deepcopy(hal.buffer)
    hal.anchors = torch.rand(2, 1, 2, 3)
    for seed in range(3):
        for model in (hal, er):
            np.random.seed(seed)
            observe(model, seed)
    assert torch.equal(weights(hal), weights(er))


def test_hal_step_by_hand():
    model = build(Hal)
    model.anchors = anchors = torch.rand(2, 1, 2, 3)
    net, (x, y) = copy.deepcopy(model.net), batch(0)
    g = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))
    moved = copy.deepcopy(net)
    with torch.no_grad():
        for p, change in zip(moved.parameters(), g, strict=True):
            p -= 0.1 * change
        after = moved(anchors)
    total = F.cross_entropy(net(x), y) + 0.5 * (net(anchors) - after).square().sum(1).mean()
    expected = [
        p - 0.1 * d for p, d in zip(net.parameters(), torch.autograd.grad(total, list(net.parameters())), strict=True)
    ]
    assert observe(model, 0) == pytest.approx(float(total), rel=1e-5)
    assert torch.allclose(weights(model), torch.cat([e.flatten() for e in expected]), atol=1e-6)


def test_hal_mean_features_decay():
    model = build(Hal, beta=0.75)
    x, y = torch.rand(3, 6), torch.tensor([0, 0, 2])
    model.follow(x, y)
    assert torch.allclose(model.phi[0], x[:2].mean(0)) and torch.allclose(model.phi[2], x[2]) and not model.phi[1].any()
    model.follow(x[2:], torch.tensor([0]))
    assert torch.allclose(model.phi[0], 0.75 * x[:2].mean(0) + 0.25 * x[2], atol=1e-6)


def test_hal_anchors_are_forgotten_more_than_where_they_started():
    model = build(Hal, gamma=0.0, anchor_steps=50)
    for seed in range(4):
        observe(model, seed, 8)
    start, labels = model.buffer.get_all_data()
    torch.manual_seed(0)
    tuned = model.tuned_on_memory()
    torch.manual_seed(0)
    anchors = model.make_anchors(start, labels)

    def gain(e):
        return float((F.cross_entropy(tuned(e), labels) - F.cross_entropy(model.net(e), labels)).detach())

    assert gain(anchors) > gain(start)


def test_implanted_logits_stay_below_the_label():
    stored = torch.tensor([[2.0, 1, 0, 0], [2, 1, 0, 0], [-1.0, -3, 0, 0]])
    outputs = torch.tensor([[0.0, 0, 4, 1], [0, 0, 1.5, -1], [0, 0, 2, 1]])
    new = implant(stored, outputs, torch.tensor([0, 0, 0]), slice(2, 4), 0.85)
    assert torch.allclose(new[0], torch.tensor([2, 1, 1.7, 0.425])), "its maximum is gamma times the label's logit"
    assert torch.allclose(new[1], torch.tensor([2, 1, 1.5, -1])), "below the label's: as it is"
    assert torch.allclose(new[2], torch.tensor([-1.0, -3, -1, -2])), "a negative label's logit: shifted"


def test_contrast_by_loops():
    torch.manual_seed(0)
    outputs, labels = torch.randn(7, 3).double(), torch.tensor([0, 0, 1, 1, 1, 2, 0])
    u, total = F.normalize(outputs, dim=1), 0.0
    for i in range(7):
        others = [j for j in range(7) if j != i]
        alike = [j for j in others if labels[j] == labels[i]]
        below = sum(float(torch.exp(u[i] @ u[j] / 5)) for j in others)
        if alike:
            total -= sum(float(u[i] @ u[j]) / 5 - np.log(below) for j in alike) / len(alike)
    assert float(contrast(outputs, labels, 5.0)) == pytest.approx(total / 7, rel=1e-9)


def test_xder_margin_by_hand():
    model = build(XDer, past_constraint=True)
    model._n_past_classes, model._n_seen_classes = 2, 4
    outputs = torch.tensor([[5.0, 0, 1, 2, 1.9, 0], [0, 0, 3, 1, 0, 0]])
    future = ((1.9 + 0.3 - 2) + 0) / 2
    past = ((5 + 0.3 - 2) + 0) / 2
    assert float(model.constraint(outputs, slice(2, 4), past=True)) == pytest.approx(0.1 * (future + past), rel=1e-5)
    assert float(model.constraint(outputs, slice(0, 2))) == pytest.approx(0.1 * (0 + (0.3 + 0 - 0)) / 2, rel=1e-5)


def test_xder_memory_learns_the_new_classes_outputs():
    stream = ToyStream(toy_args())
    model = XDer(Both(6, 6), F.cross_entropy, toy_args(**FLAGS | {"gamma": 0.85}), None, stream)
    for _ in range(2):
        stream.get_data_loaders()
        model.meta_begin_task(stream)
        before = {} if model.buffer.is_empty() else model.buffer.serialize()
        model.meta_end_task(stream)
    stored = model.buffer.serialize()
    assert torch.bincount(stored["labels"]).tolist() == [5, 5, 4, 4], "18 places for four classes"
    old = stored["labels"] < 3
    same = torch.cat(
        [torch.nonzero((before["examples"] == x).flatten(1).all(1)).flatten()[:1] for x in stored["examples"][old]]
    )
    expected = before["logits"][same].clone()
    now = model.answers(stored["examples"][old])
    assert torch.allclose(stored["logits"][old][:, [0, 1, 2, 4, 5]], expected[:, [0, 1, 2, 4, 5]])
    assert torch.allclose(
        stored["logits"][old], implant(expected, now, stored["labels"][old], slice(3, 4), 0.85), atol=1e-6
    )


def test_memory_too_small_for_a_ring():
    with pytest.raises(UserError, match="at least 6"):
        build(Hal, buffer_size=5)
