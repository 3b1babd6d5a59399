"""A-GEM, GEM, SI, online EWC and LwF on small networks against hand computation; stored state, resume after a kill."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.agem import AGem, project
from models.agem_r import AGemR
from models.bic import Bic
from models.ewc_on import EwcOn, plain_loss, weighted_loss
from models.gem import Gem, overwrite_grad, store_grad
from models.lucir import Lucir
from models.lwf import Lwf
from models.sgd import Sgd
from models.si import SI
from tests import test_resume
from tests.classic_toys import FLAGS, begin, build, some, train
from tests.conftest import ROOT
from tests.toys import ToyStream, toy_args
from utils.distillation import soft_divergence
from utils.errors import UserError
from utils.gradients import flat, gradient, trained

# A-GEM and GEM


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


# SI and EWC


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


# LwF


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


# the record


@pytest.mark.parametrize(
    "method, names",
    [
        (AGem, {"buffer"}),
        (Gem, {"buffer"}),
        (SI, {"anchor", "importance"}),
        (Lwf, set()),
        (EwcOn, {"anchor", "information"}),
        (Bic, {"buffer", "old_net", "correction"}),
        (Lucir, {"buffer", "old_net"}),
    ],
)
def test_what_is_kept_between_tasks_is_charged(method, names):
    model = build(method)
    train(model)
    assert set(model.stored_bytes()) == names
    if "anchor" in names:
        assert model.stored_bytes()["anchor"] == 4 * sum(p.numel() for p in model.net.parameters())


# killed and continued

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
        start = {
            "type": "start",
            "args": {"model": "er", "seed": seed},
            "git_commit": "abcdef0123+",
            "device": "cpu",
            "threads": 1,
            "argv": ["--model", "er", "--seed", str(seed), "--device", "cpu"],
        }
        end = {"type": "end", "status": "done", "summary": {"class_il_last": last, "stored_bytes": 3 * 2**20}}
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "record.jsonl").write_text(f"{json.dumps(start)}\n{json.dumps(end)}\n")
    monkeypatch.setattr("sys.argv", ["classics_table", str(tmp_path)])
    classics_table.main()
    text = capsys.readouterr().out
    half = 12.706 * 2.0  # t(0.975, 1) * standard error of 50 and 54
    assert f"| `er` | 2 | 52.0 ± {half:.1f} |" in text and "3.0 ± 0.0" in text and "| `bic` | 0 | *not run* |" in text
    assert "python main.py --model <model> --device cpu\n" in text and "abcdef0+" in text
