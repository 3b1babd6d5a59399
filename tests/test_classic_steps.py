"""Whole steps of the classics against plain loops, on batches that separate their terms."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.agem import random_images
from models.er_ace import ErAce
from models.ewc_on import EwcOn
from models.fdr import Fdr
from models.gdumb import GDumb
from models.gem import Gem
from models.gss import Gss
from models.hal import Hal
from models.lwf import Lwf
from models.mer import Mer
from models.rpc import Rpc
from models.si import SI
from models.xder import XDer, contrast
from tests.classic_toys import begin, build, some, train
from tests.test_regularisation_classics import step_of
from utils.gradients import flat, gradient, project_cone, trained
from utils.memory.gss import Buffer as GssBuffer

WHOLE = {"minibatch_size": 99, "buffer_size": 99}  # each draw is the whole memory
XDER = {"gamma": 0.85, "lambd": 0.0, "constr_eta": 0.0, "dp_weight": 0.0, "simclr_temp": 5.0, "simclr_num_aug": 1}
XDER |= {"simclr_batch_size": 64, "past_constraint": False, "future_constraint": True, "constr_margin": 0.3}


def value(loss) -> float:
    return float(loss.detach())


def mean_loss(logits, labels, columns=range(6)) -> float:
    """Mean over samples of log sum exp over the columns minus the label's logit."""
    rows = logits.detach().double()
    parts = [
        float(torch.logsumexp(row[list(columns)], 0) - row[y]) for row, y in zip(rows, labels.tolist(), strict=True)
    ]
    return sum(parts) / len(parts)


# ER-ACE, X-DER, FDR


def test_er_ace_loss_by_hand():
    """No mask in the first task; then the stream among its own and unseen classes, the memory among all."""
    model = build(ErAce, task_free=False, use_custom_classifier=False, **WHOLE)
    begin(model)
    for labels in ([0, 1, 2, 0, 1], [0, 0, 0, 0, 0]):
        x, y = some(model)[0], torch.tensor(labels)
        wanted = mean_loss(model.net(x), y)
        assert value(model.meta_observe(x, y, x)) == pytest.approx(wanted, rel=1e-5)
    model.meta_end_task(model.dataset)
    begin(model)
    (x, y), (old, old_labels) = some(model, 2), model.buffer.get_all_data()
    wanted = mean_loss(model.net(x), y, [3, 4, 5]) + mean_loss(model.net(old), old_labels)
    assert value(model.meta_observe(x, y, x)) == pytest.approx(wanted, rel=1e-5)


def test_xder_loss_by_hand():
    """Third task: stream among classes 4 and 5, stored labels among 0 to 3, stored logits against all outputs."""
    model = build(XDer, alpha=0.5, beta=0.7, **WHOLE, **XDER)
    train(model), train(model), begin(model)
    (x, y), (old, labels, logits, _) = some(model), model.buffer.get_all_data()
    now = model.net(old).detach()
    square = sum(float(d) ** 2 for d in (now - logits).flatten()) / now.numel()
    wanted = mean_loss(model.net(x), y, [4, 5]) + 0.5 * square + 0.7 * mean_loss(now, labels, range(4))
    assert value(model.meta_observe(x, y, x)) == pytest.approx(wanted, rel=1e-5)


def test_xder_prepares_the_outputs_of_later_tasks_alone():
    model = build(XDer, **WHOLE, **XDER)
    begin(model)
    x, y = some(model)
    outputs = model.net(x)
    later = [contrast(outputs[:, 3:4], y, 5.0), contrast(outputs[:, 4:6], y, 5.0)]
    assert value(model.prepared(x, y)) == pytest.approx(value(sum(later)) / 2, rel=1e-5)


def test_xder_similarities_by_loops():
    model = build(XDer, **WHOLE, **XDER)
    begin(model)
    model.old_net = copy.deepcopy(model.net)
    with torch.no_grad():
        model.old_net.classifier.weight += torch.randn(6, 6)
    x, _ = some(model)
    new, old = model.net(x).detach().double(), model.old_net(x).detach().double()

    def cosine(z, i, j):
        return float(z[i] @ z[j] / z[i].norm() / z[j].norm())

    total = sum((cosine(new, i, j) - cosine(old, i, j)) ** 2 for i in range(5) for j in range(5))
    assert value(model.similarity(x, model.net(x))) == pytest.approx(total / 25, rel=1e-4)


def test_fdr_two_steps_by_hand():
    """The second step starts from the first one's weights, with its own gradient alone."""
    model = build(Fdr, alpha=0.25, **WHOLE)
    train(model), begin(model)
    (x, y), (old, logits, _) = some(model), model.buffer.get_all_data()
    net, lr = copy.deepcopy(model.net), model.args.lr
    first = F.cross_entropy(net(x), y)
    with torch.no_grad():
        for p, g in zip(net.parameters(), torch.autograd.grad(first, list(net.parameters())), strict=True):
            p -= lr * g
    distances = [(a - b).norm() for a, b in zip(net(old).softmax(1), logits.softmax(1), strict=True)]
    second = 0.25 * torch.stack(distances).mean()
    g = gradient(second, trained(net))
    found = model.meta_observe(x, y, x)
    torch.testing.assert_close(flat(trained(model.net)), flat(trained(net)) - lr * g, atol=1e-5, rtol=1e-4)
    assert value(found) == pytest.approx(value(first + second), rel=1e-4)


# HAL


def test_hal_anchor_step_by_hand():
    """e + lr d/de [l_tuned(e) - l(e) - gamma |f(e) - phi|^2]; features of this net are the image itself."""
    model = build(Hal, gamma=0.3, anchor_steps=1, hal_lambda=0.1, **WHOLE)
    begin(model)
    x, y = some(model, n=3)
    tuned = copy.deepcopy(model.net).requires_grad_(False)
    tuned.classifier.weight.data += 0.5
    tuned.classifier.bias.data[0] -= 1.0
    model.tuned_on_memory, model.phi = lambda: tuned, torch.rand(6, 6)
    found = model.make_anchors(x, y)

    def slope(net, e, label):
        w, b = net.classifier.weight.detach(), net.classifier.bias.detach()
        p = (w @ e + b).softmax(0)
        return sum((float(p[c]) - (c == label)) * w[c] for c in range(6))

    for anchor, image, label in zip(found.flatten(1), x.flatten(1), y.tolist(), strict=True):
        way = slope(tuned, image, label) - slope(model.net, image, label) - 2 * 0.3 * (image - model.phi[label])
        torch.testing.assert_close(anchor, image + model.args.lr * way, atol=1e-5, rtol=1e-4)


def test_hal_tunes_on_the_whole_memory():
    model = build(Hal, anchor_steps=0, hal_lambda=0.1, **WHOLE)
    begin(model)
    for seed in range(4):
        x, y = some(model, seed)
        model.meta_observe(x, y, x)
    net, (old, labels) = copy.deepcopy(model.net), model.buffer.get_all_data()
    torch.manual_seed(1)
    order = torch.randperm(len(labels))
    assert len(order) > model.args.batch_size
    for rows in order.split(model.args.batch_size):
        g = torch.autograd.grad(F.cross_entropy(net(old[rows]), labels[rows]), list(net.parameters()))
        with torch.no_grad():
            for p, change in zip(net.parameters(), g, strict=True):
                p -= model.args.lr * change
    torch.manual_seed(1)
    torch.testing.assert_close(flat(model.tuned_on_memory().parameters()), flat(net.parameters()))


def test_hal_keeps_the_anchors_of_every_task():
    model = build(Hal, anchor_steps=1, hal_lambda=0.1, buffer_size=18)
    train(model)
    first = model.anchors.clone()
    train(model)
    assert len(first) == 3 and len(model.anchors) == 4 and torch.equal(model.anchors[:3], first)


# MER, RPC, GSS, GDumb


def with_a_memory(method, **flags):
    """A model that has seen one batch, the next batch, and what the memory will serve under numpy seed 5."""
    model = build(method, **WHOLE, **flags)
    begin(model)
    x, y = some(model)
    model.meta_observe(x, y, x)
    memory = copy.deepcopy(model.buffer)
    np.random.seed(5)
    old = memory.get_data(99)
    np.random.seed(5)
    return model, some(model, 1), old


def test_mer_goes_through_memory_then_stream():
    model, (x, y), (old, labels) = with_a_memory(Mer, beta=1.0, gamma=1.0, batch_num=1)
    net = copy.deepcopy(model.net)
    for image, label in zip(torch.cat((old, x)), torch.cat((labels, y)), strict=True):
        g = torch.autograd.grad(F.cross_entropy(net(image[None]), label[None]), list(net.parameters()))
        with torch.no_grad():
            for p, change in zip(net.parameters(), g, strict=True):
                p -= model.args.lr * change
    model.meta_observe(x, y, x)
    torch.testing.assert_close(flat(model.net.parameters()), flat(net.parameters()))


def test_rpc_step_by_hand():
    """Logits are the inner products of the first five outputs with the corners; the stream's own labels are stored."""
    model, (x, y), (old, labels) = with_a_memory(Rpc)
    before = model.buffer.get_all_data()[1].clone()
    outputs = model.net(torch.cat((x, old)))[:, :5].detach()
    logits = torch.tensor([[float(row @ model.corners[:, c]) for c in range(6)] for row in outputs])
    assert value(model.meta_observe(x, y, x)) == pytest.approx(mean_loss(logits, torch.cat((y, labels))), rel=1e-5)
    assert torch.equal(model.buffer.get_all_data()[1], torch.cat((before, y)))


def test_gss_trains_on_stream_and_memory():
    flags = {"batch_num": 1, "gss_minibatch_size": None, "gss_gradients": "classifier"}
    model, (x, y), (old, labels) = with_a_memory(Gss, **flags)
    wanted = mean_loss(model.net(torch.cat((x, old))), torch.cat((y, labels)))
    assert value(model.meta_observe(x, y, x)) == pytest.approx(wanted, rel=1e-5)


GDUMB = {"maxlr": 0.4, "minlr": 0.1, "fitting_epochs": 6, "cutmix_alpha": 0.0, "fit_every_task": True}


def test_gdumb_fits_from_scratch():
    """The same memory and seed give the same network, whatever was fitted before."""
    model, ends = build(GDumb, **WHOLE, **GDUMB), []
    start = flat(model.net.parameters())
    train(model)
    for _ in range(2):
        torch.manual_seed(0)
        model.work_done.clear()
        model.end_task(model.dataset)
        ends.append(flat(model.net.parameters()))
    assert torch.equal(*ends) and not torch.equal(ends[0], start)


def test_gdumb_rate_falls_along_cosines():
    """Cosines over 1, 2 and 4 epochs: the rate of each of six."""
    model, rates = build(GDumb, **WHOLE, **GDUMB | {"batch_size": 99}), []
    step = model.step

    def noted(inputs, labels):
        rates.append(model.fit_opt.param_groups[0]["lr"])
        return step(inputs, labels)

    model.step = noted
    train(model)
    share = [(1 + np.cos(np.pi * k / n)) / 2 for n, k in ((1, 0), (2, 0), (2, 1), (4, 0), (4, 1), (4, 2))]
    assert rates == pytest.approx([0.1 + 0.3 * s for s in share])


def test_gdumb_loss_of_a_mixed_batch(monkeypatch):
    model = build(GDumb, **WHOLE, **GDUMB | {"cutmix_alpha": 1.0})
    begin(model)
    x, y = some(model)
    other = (y + 1) % 3
    monkeypatch.setattr("models.gdumb.cutmix", lambda images, labels, alpha: (images, other, 0.3))
    model.fit_opt = torch.optim.SGD(model.net.parameters(), lr=0.1)
    logits = model.net(x)
    wanted = 0.3 * mean_loss(logits, y) + 0.7 * mean_loss(logits, other)
    assert value(model.step(x, y)) == pytest.approx(wanted, rel=1e-5)


# LwF, EWC, SI, GEM, A-GEM


def test_lwf_copy_is_of_the_net_before_the_task():
    model = build(Lwf, old_outputs="network")
    train(model)
    before, (x, _) = copy.deepcopy(model.net), some(model)
    begin(model)
    batch = next(model.dataset.train_loader.epoch(0))
    model.meta_observe(*batch[:3])
    assert torch.equal(model.old_net(x), before(x)) and not torch.equal(model.net(x), before(x))


def test_the_anchor_is_the_newest_task():
    model = build(EwcOn)
    for _ in range(2):
        train(model)
        assert torch.equal(model.anchor, flat(trained(model.net)))


def test_the_path_is_of_the_tasks_loss_alone():
    """Away from the anchor the penalty has a gradient, which is not part of omega although the step includes it."""
    model, wanted = build(SI), 0
    train(model), begin(model)
    for seed in range(3):
        x, y = some(model, seed)
        g, before = gradient(F.cross_entropy(model.net(x), y), trained(model.net)), flat(trained(model.net))
        model.meta_observe(x, y, x)
        wanted = wanted + g * (before - flat(trained(model.net)))
    torch.testing.assert_close(model.path, wanted, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("clamp", [True, False])
def test_importance_adds_up_over_tasks(clamp):
    model = build(SI, clamp_omega=clamp)
    train(model)
    old, start = model.importance.clone(), flat(trained(model.net))
    begin(model)
    x, y = some(model)
    model.meta_observe(x, y, x)
    model.path[:4] = -1.0
    way, omega = (flat(trained(model.net)) - start).tolist(), model.path.tolist()
    model.meta_end_task(model.dataset)
    wanted = [
        a + (max(w, 0.0) if clamp else w) / (d * d + model.args.xi)
        for a, w, d in zip(old.tolist(), omega, way, strict=True)
    ]
    torch.testing.assert_close(model.importance, torch.tensor(wanted))


def test_gem_rows_are_those_of_each_past_task():
    model = build(Gem)
    train(model), train(model), begin(model)
    images, labels, _ = model.buffer.get_all_data()
    for row, own in zip(model.past_gradients(trained(model.net)), (labels < 3, labels == 3), strict=True):
        wanted = gradient(F.cross_entropy(model.net(images[own]), labels[own]), trained(model.net))
        torch.testing.assert_close(row, wanted)


def test_gem_steps_along_the_projection():
    """A conflict with any one past task moves the step, and by at least gamma times each past gradient."""
    model, one_of_two = build(Gem, gamma=0.5, lr=0.01), 0
    train(model), train(model), begin(model)
    for seed in range(12):
        x, y = some(model, seed)
        with torch.no_grad():
            model.net.classifier.bias[3 if seed % 2 else 0] += 3
        G = model.past_gradients(trained(model.net))
        g = gradient(F.cross_entropy(model.net(x), y), trained(model.net))
        against = (G @ g < 0).tolist()
        one_of_two += any(against) and not all(against)
        wanted = project_cone(g, G, 0.5) if any(against) else g
        torch.testing.assert_close(step_of(model, x, y), wanted, atol=5e-4, rtol=1e-3)
    assert one_of_two


def test_images_of_a_task_are_drawn_at_random():
    model = build(Gem)
    begin(model)
    loader, torch_seed = model.dataset.train_loader, torch.manual_seed
    seen = set()
    for seed in range(20):
        torch_seed(seed)
        images, labels = random_images(loader, 3)
        seen |= {tuple(image.flatten().tolist()) for image in images}
        assert len(images) == len(labels) == 3
    assert len(seen) > 12  # of 24 images


@pytest.mark.parametrize("old_outputs", ["recorded", "network"])
def test_lwf_loss_once_the_net_has_moved(old_outputs):
    """Three old of four seen classes: alpha times KL of softened old answers to new ones, in double precision."""
    model = build(Lwf, old_outputs=old_outputs, alpha=3.0)
    train(model)
    before = copy.deepcopy(model.net)
    begin(model)
    with torch.no_grad():
        model.net.classifier.bias += torch.tensor([2.0, -1.0, 0.5, 1.0, 0.0, 0.0])
    x, labels, plain, *extras = next(model.dataset.train_loader.epoch(0))
    z, old = model.net(x).detach().double(), before(x).detach().double()
    total = 0.0
    for row, target in zip(z, old, strict=True):
        p, q = (target[:3] / 2).softmax(0).tolist(), (row[:3] / 2).softmax(0).tolist()
        total += sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)) / len(z)
    found = model.meta_observe(x, labels, plain, **({"logits": extras[0]} if extras else {}))
    assert value(found) == pytest.approx(mean_loss(z, labels, range(4)) + 3 * total, rel=1e-5)


def test_lwf_records_answers_in_eval_mode():
    model = build(Lwf, norm=True, warmup_epochs=0)
    train(model)
    before = copy.deepcopy(model.net).eval()
    begin(model)
    split = model.dataset.train_loader.dataset
    images, _ = split.plain(torch.arange(len(split)))
    torch.testing.assert_close(split.logits, before(images).detach())
    assert model.net.training


def test_gss_gradients_are_taken_in_eval_mode():
    model = build(Gss, norm=True, batch_num=1, gss_minibatch_size=None, gss_gradients="classifier", **WHOLE)
    begin(model)
    x, y = some(model)
    model.meta_observe(x, y, x)  # BatchNorm gets statistics
    net = copy.deepcopy(model.net).eval()
    wanted = [
        gradient(F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]), [*net.classifier.parameters()]) for i in range(5)
    ]
    found = model.gradients(x, y).view(5, 6, 7)
    found = torch.cat([found[..., :6].flatten(1), found[..., 6]], dim=1)
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-6, rtol=1e-4)
    assert model.net.training


def test_gss_score_is_the_likeness_to_the_nearest_batch():
    """Gradients here are the images: one of the stored two is the sample itself, the other is at a right angle."""
    own = type("Own", (), {"gradients": lambda self, images, labels: images.flatten(1)})()
    buffer = GssBuffer(2, "cpu", minibatch_size=1, model=own, batch_num=40)
    buffer.add_data(torch.eye(2).view(2, 1, 1, 2), torch.tensor([0, 1]))
    scores = buffer.scores_of(torch.tensor([[1.0, 0], [-1, -1], [1, 1]]).view(3, 1, 1, 2), torch.tensor([0, 0, 0]))
    assert scores.tolist() == pytest.approx([2.0, 1 - 0.5**0.5, 1 + 0.5**0.5], abs=1e-5)
