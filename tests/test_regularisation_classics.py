"""A-GEM, GEM, SI, online EWC, LwF, LUCIR and BiC on nets and numbers that are followed by hand."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbone.cosine import CosineLinear
from models.agem import AGem, project
from models.agem_r import AGemR
from models.bic import Bic, fit_correction, rescale
from models.ewc_on import EwcOn, plain_loss, weighted_loss
from models.gem import Gem, overwrite_grad, store_grad
from models.lucir import Lucir, margin_ranking
from models.lwf import Lwf
from models.sgd import Sgd
from models.si import SI
from tests import test_resume
from tests.conftest import ROOT
from tests.toys import Linear, ToyStream, toy_args
from utils.distillation import soft_divergence
from utils.errors import UserError
from utils.gradients import flat, gradient, trained

FLAGS = {"whole_memory": True, "gamma": 0.5, "mammoth_compat": False, "c": 0.5, "xi": 1.0, "clamp_omega": True, "e_lambda": 2.0,
         "fisher": "empirical", "softmax_temp": 2.0, "warmup_epochs": 1, "old_outputs": "recorded", "lamda_base": 5.0, "lamda_mr": 1.0,
         "k_mr": 2, "mr_margin": 0.5, "fitting_epochs": 3, "lr_finetune": 0.01, "imprint_weights": True, "optim_mom": 0.0, "optim_wd": 0.0,
         "bic_epochs": 250, "bic_lr": 0.01, "temp": 2.0, "valset_split": 0.1, "distill_after_bic": True, "buffer_size": 18}  # fmt: skip


class Both(Linear):
    """The linear net, which also gives logits and features together."""

    def forward(self, x, returnt="out"):
        features = super().forward(x, "features")
        return {"features": features, "both": (self.classifier(features), features)}.get(
            returnt, self.classifier(features)
        )


def build(method, norm=False, **changes):
    args = toy_args(**{**FLAGS, **changes})
    torch.manual_seed(0)
    stream = ToyStream(args)
    model = method(Both(6, stream.N_CLASSES, norm), F.cross_entropy, args, None, stream)
    return model


def begin(model):
    model.dataset.get_data_loaders()
    model.net.train()
    model.meta_begin_task(model.dataset)


def train(model, steps=None):
    """A task's pass, or its first steps."""
    begin(model)
    for number, data in enumerate(model.dataset.train_loader.epoch(0)):
        if number == steps:
            return
        names = model.dataset.train_loader.dataset.extra_return_fields
        model.meta_observe(*data[:3], epoch=0, **dict(zip(names, data[3:], strict=True)))
    model.meta_end_task(model.dataset)


def some(model, seed=0, n=5):
    """Images and labels of the newest classes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(max(model.n_past_classes, 0), model.n_seen_classes, (n,), generator=draw)
    return torch.rand(n, 1, 2, 3, generator=draw), labels


# A-GEM and GEM ---------------------------------------------------------------------------------------------------


def step_of(model, x, y):
    """The direction (P,) of the step that a method takes on a batch, as a gradient."""
    before = flat(trained(model.net))
    model.meta_observe(x, y, x)
    return (before - flat(trained(model.net))) / model.args.lr


@pytest.mark.parametrize("method", [AGem, AGemR])
def test_agem_steps_along_the_projected_gradient(method):
    model = build(method, minibatch_size=18, lr=0.01)  # all of the memory in every draw
    train(model), begin(model)
    projected = 0
    for seed in range(12):
        (x, y), parameters = some(model, seed), trained(model.net)
        old, labels = model.buffer.get_all_data()
        with torch.no_grad():  # the memory wants the new class less, the batch more, in steps 0, 2, 4 ...
            model.net.classifier.bias[3] += -4 if seed % 2 else 4
        g = gradient(F.cross_entropy(model.net(x), y), parameters)
        r = gradient(F.cross_entropy(model.net(old), labels), parameters)
        taken = step_of(model, x, y)
        wanted = g if g @ r >= 0 else g - (g @ r) / (r @ r) * r
        torch.testing.assert_close(taken, wanted, atol=2e-4, rtol=1e-3)
        assert taken @ r > -1e-3
        projected += bool(g @ r < 0)
    assert 0 < projected < 12


def test_agem_memory_has_room_for_every_task():
    model = build(AGem, buffer_size=7)
    counts = []
    for _ in range(3):
        train(model)
        counts.append(len(model.buffer))
    assert counts == [3, 5, 7]
    labels = model.buffer.labels.tolist()
    assert set(labels[:3]) <= {0, 1, 2} and set(labels[3:5]) == {3} and set(labels[5:]) <= {4, 5}


@pytest.mark.parametrize("method", [AGem, Gem])
def test_a_memory_smaller_than_the_stream_is_refused(method):
    with pytest.raises(UserError, match="at least 3"):
        build(method, buffer_size=2)


def test_agem_compat_offers_one_batch_of_a_task():
    model = build(AGem, buffer_size=100, mammoth_compat=True)
    train(model)
    assert len(model.buffer) == model.args.batch_size == 8


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_gem_raises_no_past_loss(gamma):
    model = build(Gem, gamma=gamma, lr=0.01)
    train(model), train(model), begin(model)
    moved = 0
    for seed in range(12):
        x, y = some(model, seed)
        parameters = trained(model.net)
        G = model.past_gradients(parameters)
        assert len(G) == 2
        g = gradient(F.cross_entropy(model.net(x), y), parameters)
        taken = step_of(model, x, y)
        assert (G @ taken > -1e-3).all()
        if (G @ g >= 0).all():
            torch.testing.assert_close(taken, g, atol=2e-4, rtol=1e-3)
        else:
            moved += 1
    assert moved


def test_gem_draws_a_batch_of_each_past_task():
    model = build(Gem, whole_memory=False, minibatch_size=2)
    train(model), train(model), begin(model)
    sizes = []
    model.net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    model.past_gradients(trained(model.net))
    assert sizes == [2, 2]


@pytest.mark.parametrize("method", [AGem, AGemR, Gem, SI, EwcOn, Lwf, Bic])
def test_the_first_task_is_plain_training(method):
    model, plain = build(method), build(Sgd)
    if method in {Lwf, Bic}:  # over the seen classes
        plain.loss = lambda outputs, labels: F.cross_entropy(outputs[:, :3], labels)
    train(model, steps=1), train(plain, steps=1)
    for a, b in zip(model.net.parameters(), plain.net.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_functions_that_other_files_import():
    net = nn.Linear(2, 2)
    net(torch.ones(1, 2)).sum().backward()
    dims = [p.numel() for p in net.parameters()]
    stored, from_list = torch.empty(sum(dims)), torch.empty(sum(dims))
    store_grad(net.parameters, stored, dims)
    store_grad(list(net.parameters()), from_list, dims)
    assert torch.equal(stored, torch.ones(6)) and torch.equal(stored, from_list)
    overwrite_grad(net.parameters, torch.arange(6.0), dims)
    assert net.weight.grad.tolist() == [[0, 1], [2, 3]] and net.bias.grad.tolist() == [4, 5]
    assert project(torch.tensor([1.0, 1.0]), torch.tensor([-1.0, 0.0])).tolist() == [0.0, 1.0]


# SI and EWC ------------------------------------------------------------------------------------------------------


def test_si_integrates_the_loss_along_the_way():
    """On a quadratic, sum of g times the way tends to the loss gained, and its parts to those of each parameter."""

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.tensor([2.0, -1.0]))

        def forward(self, x):
            return (torch.tensor([1.0, 3.0]) * self.theta.square()).sum() / 2

    args = toy_args(**{**FLAGS, "lr": 1e-3, "optim_mom": 0.5})
    model = SI(Quadratic(), lambda outputs, labels: outputs, args, None, ToyStream(args))
    begin(model)
    for _ in range(500):
        model.meta_observe(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    theta = model.net.theta.detach()
    gained = torch.tensor([1.0, 3.0]) * (torch.tensor([4.0, 1.0]) - theta.square()) / 2
    torch.testing.assert_close(model.path, gained, rtol=5e-3, atol=0)
    model.meta_end_task(model.dataset)
    way = theta - torch.tensor([2.0, -1.0])
    torch.testing.assert_close(model.importance, gained / (way.square() + 1.0), rtol=5e-3, atol=0)


def test_si_of_one_sgd_step_is_lr_times_the_squared_gradient():
    model = build(SI)
    begin(model)
    x, y = some(model)
    g = gradient(F.cross_entropy(model.net(x), y), trained(model.net))
    model.meta_observe(x, y, x)
    torch.testing.assert_close(model.path, model.args.lr * g.square(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method, strength, weight", [(SI, "c", "importance"), (EwcOn, "e_lambda", "information")])
def test_penalty_is_part_of_loss_and_step(method, strength, weight):
    model = build(method)
    train(model), begin(model)
    for seed in range(2):  # at theta* the penalty is 0
        (x, y), theta = some(model, seed), flat(trained(model.net)).requires_grad_()
        loss = F.cross_entropy(model.net(x), y)
        g = gradient(loss, trained(model.net))
        penalty = getattr(model.args, strength) * (getattr(model, weight) * (theta - model.anchor) ** 2).sum()
        expected = theta.detach() - model.args.lr * (g + torch.autograd.grad(penalty, theta)[0])
        assert float(model.meta_observe(x, y, x)) == pytest.approx(float((loss + penalty).detach()), rel=1e-5)
        torch.testing.assert_close(flat(trained(model.net)), expected)
        assert bool(penalty > 0) == bool(seed)


def explicit_fisher(model, weigh=lambda loss: 1.0):
    total, count = 0, 0
    for images, labels in model.dataset.train_loader.plain():
        for i in range(len(labels)):
            loss = F.cross_entropy(model.net(images[i : i + 1]), labels[i : i + 1])
            total = total + weigh(loss.detach()) * gradient(loss, trained(model.net)) ** 2
            count += 1
    return total, count


@pytest.mark.parametrize("norm", [False, True])
def test_fisher_is_the_mean_of_squared_gradients_of_single_images(norm):
    model = build(EwcOn, norm)
    begin(model)
    for data in model.dataset.train_loader.epoch(0):
        model.meta_observe(*data[:3], epoch=0)
    statistics = [b.clone() for b in model.net.buffers()]
    found = model.fisher(model.dataset)
    assert all(torch.equal(a, b) for a, b in zip(statistics, model.net.buffers(), strict=True)) and model.net.training
    model.net.eval()
    total, count = explicit_fisher(model)
    assert count == 24  # 7 + 8 + 9 images
    torch.testing.assert_close(found, total / count, rtol=1e-4, atol=1e-9)
    model.args.fisher = "mammoth"
    total, _ = explicit_fisher(model, lambda loss: (-loss).exp())
    torch.testing.assert_close(model.fisher(model.dataset), total / (3 * 8), rtol=1e-4, atol=1e-9)


def test_true_fisher_is_that_of_drawn_labels():
    """Of a linear softmax net: E (p - y)^2 x^2 = p (1 - p) x^2 for each class."""
    model = build(EwcOn, fisher="true")
    begin(model)
    images, _ = model.dataset.train_loader.dataset.plain(torch.arange(len(model.dataset.train_loader.dataset)))
    with torch.no_grad():
        p = model.net(images).softmax(1)
    wanted = torch.cat([((p * (1 - p)).T @ images.flatten(1).square()).flatten(), (p * (1 - p)).sum(0)]) / len(images)
    torch.manual_seed(0)
    found = torch.stack([model.fisher(model.dataset) for _ in range(100)])
    assert ((found.mean(0) - wanted).abs() <= 5 * found.std(0) / 100**0.5 + 1e-7).all()


def test_old_information_decays():
    model = build(EwcOn, gamma=0.25)
    train(model)
    first = model.information.clone()
    begin(model)
    new = model.fisher(model.dataset)
    model.meta_end_task(model.dataset)
    torch.testing.assert_close(model.information, 0.25 * first + new)


def test_weighted_loss_weighs_squares_by_the_probability():
    z, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    (plain,), (weighted,) = (torch.autograd.grad(f(z, y).sum(), z) for f in (plain_loss, weighted_loss))
    torch.testing.assert_close(weighted**2, z.softmax(1).gather(1, y[:, None]) * plain**2)


# LwF -------------------------------------------------------------------------------------------------------------


def test_divergence_is_nothing_between_equal_nets_and_has_the_gradient_of_soft_targets():
    z, old = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.randn(5, 4, dtype=torch.float64)
    assert float(soft_divergence(old, old, 2.0)) == 0
    (g,) = torch.autograd.grad(soft_divergence(z, old, 2.0), z)
    targets = old.softmax(1).sqrt() / old.softmax(1).sqrt().sum(1, keepdim=True)  # softmax(old / 2)
    (wanted,) = torch.autograd.grad(-(targets * (z / 2).log_softmax(1)).sum(1).mean(), z)
    torch.testing.assert_close(g, wanted)


@pytest.mark.parametrize("old_outputs", ["recorded", "network"])
def test_lwf_keeps_the_answers_of_the_net_before_the_task(old_outputs):
    model = build(Lwf, old_outputs=old_outputs, alpha=3.0, warmup_epochs=4)
    train(model)
    before = copy.deepcopy(model.net)
    begin(model)
    inputs, labels, plain, *extras = next(model.dataset.train_loader.epoch(0))
    old = before(inputs)[:, :3].detach()
    if old_outputs == "recorded":
        torch.testing.assert_close(extras[0][:, :3], old)
    outputs = model.net(inputs)[:, :4]
    wanted = F.cross_entropy(outputs, labels) + 3.0 * soft_divergence(outputs[:, :3], old, 2.0)
    found = model.meta_observe(inputs, labels, plain, **({"logits": extras[0]} if extras else {}))
    assert float(found) == pytest.approx(float(wanted.detach()), rel=1e-5)


@pytest.mark.parametrize("epochs", [0, 5])
def test_the_warm_up_trains_the_new_rows_alone(epochs):
    model = build(Lwf, norm=True, warmup_epochs=epochs, lr=0.5)
    model.args.lr = 0.5
    train(model), train(model)
    before = copy.deepcopy(model.net.state_dict())
    begin(model)
    after = model.net.state_dict()
    for key, value in before.items():
        if key.startswith("classifier"):
            assert torch.equal(after[key][:4], value[:4])
            assert torch.equal(after[key][4:], value[4:]) == (epochs == 0)
        else:
            assert torch.equal(after[key], value), key


def test_lwf_compat_records_images_that_are_not_normalised():
    model = build(Lwf, mammoth_compat=True)
    model.normalization_transform = lambda x: (x - 0.5) / 0.25
    train(model)
    before = copy.deepcopy(model.net)
    begin(model)
    split = model.dataset.train_loader.dataset
    images, _ = split.plain(torch.arange(len(split)))
    torch.testing.assert_close(split.logits, before(images).detach())


# LUCIR -----------------------------------------------------------------------------------------------------------


def test_margin_ranking_by_hand():
    cosines = torch.tensor([[0.9, 0.1, 0.7, 0.2, 0.5], [0.3, 0.4, 0.1, 0.0, 0.2], [0.0, 0.0, 0.9, 0.0, 0.0]])
    labels = torch.tensor([0, 1, 2])  # the third is of a new class: not counted
    # first: .5 - .9 + .7 and .5 - .9 + .5; second: .5 - .4 + .2 and .5 - .4 + .1
    assert float(margin_ranking(cosines, labels, 2, 2, 0.5)) == pytest.approx((0.3 + 0.1 + 0.3 + 0.2) / 2)
    assert float(margin_ranking(cosines, labels, 2, 9, 0.5)) == pytest.approx((0.3 + 0.1 + 0 + 0.3 + 0.2 + 0.1) / 2)
    assert float(margin_ranking(cosines[2:], labels[2:], 2, 2, 0.5)) == 0


def test_lucir_loss_by_hand():
    model = build(Lucir)
    train(model), begin(model)
    assert model.lamda == pytest.approx(5 * (3 / 1) ** 0.5)
    inputs, labels, plain = next(model.dataset.train_loader.epoch(0))[:3]
    assert {0, 1, 2} & set(labels.tolist()), "exemplars are replayed"
    with torch.no_grad():
        f = model.net(inputs, returnt="features")
        w = model.net.classifier.weight[:4]
        cosines = torch.tensor([[float(a @ c / a.norm() / c.norm()) for c in w] for a in f])
    loss = F.cross_entropy(
        model.net.classifier.scale.detach() * cosines, labels
    )  # the features have not moved: no distillation
    margins = [
        max(0.0, 0.5 - float(row[y]) + float(row[3])) for row, y in zip(cosines, labels.tolist(), strict=True) if y < 3
    ]
    wanted = float(loss) + sum(margins) / len(margins)
    before = model.net.classifier.weight.detach().clone()
    assert float(model.meta_observe(inputs, labels, plain)) == pytest.approx(wanted, rel=1e-4)
    assert torch.equal(model.net.classifier.weight[:3], before[:3])
    assert not torch.equal(model.net.classifier.weight[3], before[3])


def test_lucir_holds_features_in_direction():
    model = build(Lucir, norm=True, lamda_mr=0.0)
    train(model), begin(model)
    inputs, labels, plain = next(model.dataset.train_loader.epoch(0))[:3]
    without = copy.deepcopy(model)
    without.lamda = 0.0
    away = model.meta_observe(inputs, labels, plain) - without.meta_observe(inputs, labels, plain)
    model = build(Lucir, norm=True, lamda_mr=0.0)
    train(model), begin(model)
    f, old = model.net(inputs, returnt="features"), model.old_net(inputs, returnt="features")
    assert float(away) == pytest.approx(
        float((model.lamda * (1 - F.cosine_similarity(f, old)).mean()).detach()), rel=1e-3
    )
    assert float(away) > 0


def test_imprinted_rows():
    model = build(Lucir)
    train(model)
    old = model.net.classifier.weight[:3].detach().clone()
    begin(model)
    split = model.dataset.train_loader.dataset.splits[0]
    f = F.normalize(split.plain(torch.arange(len(split)))[0].flatten(1), dim=1).mean(0)
    row = model.net.classifier.weight[3].detach()
    torch.testing.assert_close(row.norm(), old.norm(dim=1).mean())
    torch.testing.assert_close(F.normalize(row, dim=0), F.normalize(f, dim=0))


def test_lucir_weight_of_the_task_before():
    model = build(Lucir, mammoth_compat=True)
    train(model), begin(model)
    assert model.lamda == 0  # no old class before the first task
    for data in model.dataset.train_loader.epoch(0):
        model.meta_observe(*data[:3], epoch=0)
    model.meta_end_task(model.dataset), begin(model)
    assert model.lamda == pytest.approx(5 * 3**0.5)


def test_lucir_needs_a_linear_classifier():
    args = toy_args(**FLAGS)
    with pytest.raises(UserError, match="linear"):
        Lucir(nn.Sequential(nn.Flatten(), nn.Linear(6, 6)), F.cross_entropy, args, None, ToyStream(args))


def test_cosine_classifier():
    head, x = CosineLinear(3, 2), torch.randn(4, 3)
    wanted = torch.stack([F.cosine_similarity(x, row[None]) for row in head.weight], dim=1)
    torch.testing.assert_close(head(x), wanted)
    torch.testing.assert_close(head(7 * x), wanted)


# BiC -------------------------------------------------------------------------------------------------------------


def test_bic_loss_by_hand():
    model = build(Bic)
    train(model), begin(model)
    inputs, labels, plain = next(model.dataset.train_loader.epoch(0))[:3]
    z, old = model.net(inputs)[:, :4], model.old_net(inputs)[:, :3]
    p, q = (old / 2).softmax(1), (z[:, :3] / 2).softmax(1)
    wanted = 0.25 * F.cross_entropy(z, labels) + 0.75 * 4 * (p * (p / q).log()).sum(1).mean()
    assert float(model.meta_observe(inputs, labels, plain)) == pytest.approx(float(wanted.detach()), rel=1e-4)


def test_bic_compat_weight_shrinks():
    model = build(Bic, mammoth_compat=True)
    train(model), begin(model)
    inputs, labels, plain = next(model.dataset.train_loader.epoch(0))[:3]
    z = model.net(inputs)[:, :4]  # equal to the old net: no distillation
    assert float(model.meta_observe(inputs, labels, plain)) == pytest.approx(
        0.5 * float(F.cross_entropy(z, labels).detach()), rel=1e-5
    )


def test_bic_holds_out_as_many_of_every_class_and_trains_on_the_rest():
    model = build(Bic, valset_split=0.4)
    train(model)
    stored = model.buffer.serialize()
    begin(model)
    images, labels = model.held_out
    assert torch.bincount(labels).tolist() == [2, 2, 2, 2]  # 6 exemplars of each old class
    seen = model.dataset.train_loader.dataset.plain(torch.arange(len(model.dataset.train_loader.dataset)))
    assert len(seen[1]) + len(labels) == 10 + len(stored["labels"])
    whole = [tuple(v) for v in torch.cat([seen[0], images]).flatten(1).mul(255).round().int().tolist()]
    new = model.dataset.samples(True)
    wanted = torch.cat([stored["examples"], new.data[new.targets == 3]]).flatten(1).int().tolist()
    assert sorted(whole) == sorted(map(tuple, wanted))


def test_bic_distils_corrected_logits():
    model, plain = build(Bic), build(Bic, distill_after_bic=False)
    for m in (model, plain):
        train(m), train(m)
        m.correction.copy_(torch.tensor([2.0, -1.0]))
        begin(m)
    x = some(model)[0]
    z = model.net(x)
    assert torch.equal(model.correct(z), torch.cat([z[:, :3], 2 * z[:, 3:4] - 1, z[:, 4:]], dim=1))
    batch = next(model.dataset.train_loader.epoch(0))[:3]
    assert float(plain.meta_observe(*batch)) < float(
        model.meta_observe(*batch)
    )  # its own net's plain logits: equal to z


def test_bias_fit_recovers_a_distortion():
    draw = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(4000, 6, generator=draw)
    labels = torch.multinomial(z.softmax(1), 1, generator=draw).flatten()
    distorted = rescale(z, 4, 6, torch.tensor([1 / 0.6, 0.9 / 0.6]))  # undone by a = 0.6, b = -0.9
    found = fit_correction(distorted, labels, 4, 600, 0.01)
    torch.testing.assert_close(found, torch.tensor([0.6, -0.9]), atol=0.1, rtol=0)
    assert torch.equal(fit_correction(z, labels, 4, 0, 0.01), torch.tensor([1.0, 0.0]))


def test_bic_answers_are_corrected_after_a_task_and_plain_within_one():
    model = build(Bic, bic_lr=0.1)
    train(model)
    x = some(model)[0]
    assert torch.equal(model(x), model.net(x))
    train(model)
    z = model.net(x)
    a, b = model.correction
    assert a != 1 and torch.equal(model(x)[:, 3], a * z[:, 3] + b) and torch.equal(model(x)[:, :3], z[:, :3])
    begin(model)
    assert torch.equal(model(x), model.net(x))


def test_bic_needs_two_exemplars_of_each_old_class():
    with pytest.raises(UserError, match="at least 8"):
        build(Bic, buffer_size=7)


# the record ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method, names", [(AGem, {"buffer"}), (Gem, {"buffer"}), (SI, {"anchor", "importance"}), (Lwf, set()),
                                           (EwcOn, {"anchor", "information"}), (Bic, {"buffer", "old_net", "correction"}),
                                           (Lucir, {"buffer", "old_net"})])  # fmt: skip
def test_what_is_kept_between_tasks_is_charged(method, names):
    model = build(method)
    train(model)
    assert set(model.stored_bytes()) == names
    if "anchor" in names:
        assert model.stored_bytes()["anchor"] == 4 * sum(p.numel() for p in model.net.parameters())


# killed and continued --------------------------------------------------------------------------------------------

KILLED = {
    "agem": ["--buffer_size", "40"],
    "gem": ["--buffer_size", "40"],
    "si": ["--c", "5", "--xi", "0.1"],
    "ewc_on": ["--e_lambda", "10", "--gamma", "0.9", "--fisher", "true"],
    "lwf": ["--alpha", "2", "--warmup_epochs", "2"],
    "lucir": ["--buffer_size", "40"],
    "bic": ["--buffer_size", "40", "--bic_epochs", "20"],
}


SLOW = {"agem", "gem", "si"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in KILLED])
def test_killed_runs_end_like_the_uninterrupted_one(name, data, tmp_path, monkeypatch):
    monkeypatch.setitem(test_resume.COMMANDS, name, ["--model", name, "--lr", "0.05", *KILLED[name]])
    test_resume.test_killed_runs_end_like_the_uninterrupted_one(name, data, tmp_path)


def test_table_of_records(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import classics_table

    for seed, last in ((1, 50.0), (2, 54.0)):
        start = {"type": "start", "args": {"model": "er", "seed": seed}, "git_commit": "abcdef0123+", "device": "cpu", "threads": 1,
                 "argv": ["--model", "er", "--seed", str(seed), "--device", "cpu"]}  # fmt: skip
        end = {"type": "end", "status": "done", "summary": {"class_il_last": last, "stored_bytes": 3 * 2**20}}
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "record.jsonl").write_text(f"{json.dumps(start)}\n{json.dumps(end)}\n")
    monkeypatch.setattr("sys.argv", ["classics_table", str(tmp_path)])
    classics_table.main()
    text = capsys.readouterr().out
    half = 12.706 * 2.0  # t(0.975, 1) * standard error of 50 and 54
    assert f"| `er` | 2 | 52.0 ± {half:.1f} |" in text and "3.0 ± 0.0" in text and "| `bic` | 0 | *not run* |" in text
    assert "python main.py --model <model> --device cpu\n" in text and "abcdef0+" in text
