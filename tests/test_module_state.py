import copy
import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

from tests.test_checkpoint import same
from utils.engine import checkpoint
from utils.errors import UserError


class Net(nn.Module):
    def __init__(self, n_out=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.3))
        self.classifier = nn.Linear(3, n_out)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.calls = 0  # a plain counter of a submodule

    def forward(self, x):
        self.calls += 1
        return self.classifier(self.body(x).mean((2, 3)))


class Memory:
    """An object that defines its own state."""

    def __init__(self):
        self.rows = []

    def state(self):
        return {"rows": self.rows}

    def load_state(self, state):
        self.rows = list(state["rows"])


class Toy(nn.Module):
    """A continual method with every kind of state that methods keep."""

    def __init__(self):
        super().__init__()
        self.args = {"skipped": True}
        self.net = Net()
        self.old_net = None
        self.loss = nn.CrossEntropyLoss()
        self.activation = torch.nn.functional.relu
        self.opt = torch.optim.Adam(self.net.parameters(), lr=0.01)
        self.memory = Memory()
        self.prompts = nn.ParameterList()
        self.rng, self.torch_rng = np.random.RandomState(0), torch.Generator().manual_seed(0)
        self.generator, self.python_rng = np.random.default_rng(0), random.Random(0)
        self.current_task, self.history = 0, deque(maxlen=4)

    def begin_task(self):
        """What a fresh model does not have: a teacher, a grown head, a prompt, another optimizer, a scheduler."""
        if self.current_task:
            self.old_net = copy.deepcopy(self.net).eval().requires_grad_(False)
            self.teachers = [*getattr(self, "teachers", []), copy.deepcopy(self.net)]
            grown = nn.Linear(3, self.net.classifier.out_features + 2)
            grown.weight.data[:-2] = self.net.classifier.weight.data
            self.net.classifier = grown
            self.prompts.append(nn.Parameter(torch.randn(2)))
            self.trained = list(self.net.parameters())
            self.opt = torch.optim.AdamW([{"params": self.trained}, {"params": self.prompts, "lr": 0.1}], lr=0.02)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.opt, [2, 4], gamma=0.5)
        self.means = {self.current_task: torch.randn(3), "sizes": [float("nan"), 1]}
        self.exemplars = [torch.randn(2, 1, 5, 5) for _ in range(2)]

    def step(self):
        x = torch.randn(6, 1, 5, 5) + self.rng.rand() + self.generator.random() + self.python_rng.random()
        y = torch.randint(0, self.net.classifier.out_features, (6,), generator=self.torch_rng)
        loss = self.loss(self.activation(self.net(x)), y) + sum(p.square().sum() for p in self.prompts)
        if self.old_net is not None:
            loss = loss + (self.net(x)[:, :4] - self.old_net(x)[:, :4]).square().mean()
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        self.scheduler.step()
        self.memory.rows.append(x[0].mean())
        self.history.append(loss.item())
        return loss.item()

    def end_task(self):
        self.current_task += 1

    def see(self, module, inputs):
        """A hook."""


def through_file(model, fresh, tmp_path):
    state, unsaved = checkpoint.capture(model)
    checkpoint.save(tmp_path / "a.safetensors", state, model="toy")
    checkpoint.restore(fresh, checkpoint.load(tmp_path / "a.safetensors", model="toy"))
    return unsaved


@pytest.mark.parametrize("stop", [0, 1, 5, 9])
def test_resumed_training_equals_uninterrupted_training(stop, tmp_path):
    torch.manual_seed(0)
    model, losses = Toy(), []
    for i in range(15):
        if i % 4 == 0:  # tasks of four steps
            model.begin_task()
        if i == stop:
            rng = torch.get_rng_state()
            torch.manual_seed(99)
            fresh = Toy()
            assert through_file(model, fresh, tmp_path) == []
            torch.set_rng_state(rng)
            twin = fresh
        losses.append(model.step())
        if i % 4 == 3:
            model.end_task()
    torch.set_rng_state(rng)
    resumed = []
    for i in range(stop, 15):
        if i % 4 == 0 and i > stop:
            twin.begin_task()
        resumed.append(twin.step())
        if i % 4 == 3:
            twin.end_task()
    assert same(resumed, losses[stop:])
    assert same(dict(twin.state_dict()), dict(model.state_dict()))
    assert same(twin.opt.state_dict(), model.opt.state_dict())
    assert same(twin.history, model.history) and twin.history.maxlen == 4
    assert twin.net.calls == model.net.calls and same(twin.memory.rows, model.memory.rows)


def test_flags_structure_and_identities(tmp_path):
    torch.manual_seed(0)
    model = Toy()
    for _ in range(2):
        model.begin_task()
        model.step()
        model.end_task()
    model.net.body.eval()
    model.net.scratch.fill_(7)
    fresh = Toy()
    fresh.args = "its own"
    through_file(model, fresh, tmp_path)
    assert fresh.args == "its own" and fresh.current_task == 2
    assert [m.training for m in fresh.modules()] == [m.training for m in model.modules()]
    flags = [(n, p.requires_grad, p.shape) for n, p in model.named_parameters()]
    assert [(n, p.requires_grad, p.shape) for n, p in fresh.named_parameters()] == flags
    assert fresh.net.classifier.out_features == 6 and len(fresh.prompts) == 1 and len(fresh.teachers) == 1
    assert fresh.net.scratch.tolist() == [7, 7] and "net.scratch" not in fresh.state_dict()
    assert fresh.trained[0] is next(fresh.net.parameters())
    assert fresh.opt.param_groups[1]["params"][0] is fresh.prompts[0] and fresh.scheduler.optimizer is fresh.opt
    assert same(fresh.means, model.means) and same(fresh.exemplars, model.exemplars)
    assert same(dict(fresh.teachers[0].state_dict()), dict(model.teachers[0].state_dict()))


def test_an_optimizer_made_in_training_keeps_its_defaults(tmp_path):
    """A group that is added after the restore gets them."""
    model, fresh = Toy(), Toy()
    model.opt = torch.optim.AdamW(model.net.parameters(), lr=0.02, betas=(0.5, 0.6), weight_decay=0.3)
    through_file(model, fresh, tmp_path)
    assert fresh.opt.defaults == model.opt.defaults


def test_an_optimizer_over_plain_tensors_keeps_them(tmp_path):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.prompt = torch.zeros(3, requires_grad=True)
            self.opt = torch.optim.SGD([self.prompt], lr=1.0, momentum=0.9)

        def step(self):
            self.opt.zero_grad()
            (self.prompt - 1).square().sum().backward()
            self.opt.step()

    model, fresh = Plain(), Plain()
    model.step()
    assert through_file(model, fresh, tmp_path) == []
    model.step()
    fresh.step()
    assert same(fresh.prompt, model.prompt) and fresh.prompt[0] != 0


def test_shared_modules_and_tied_weights(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.b = nn.Linear(2, 2)
            self.c = self.a

    model, fresh = Tied(), Tied()
    through_file(model, fresh, tmp_path)
    assert fresh.c is fresh.a
    model.b.weight = model.a.weight  # tied in training
    model.c = copy.deepcopy(model.a)  # parted in training
    model.c.weight.data.zero_()
    through_file(model, fresh, tmp_path)
    assert fresh.b.weight is fresh.a.weight and fresh.c is not fresh.a and fresh.c.weight.sum() == 0
    assert same(dict(fresh.state_dict()), dict(model.state_dict()))
    again = Tied()
    through_file(fresh.b, again.b, tmp_path)
    assert same(again.b.weight, model.a.weight)


def test_modules_that_appear_vanish_and_change_class(tmp_path):
    model, fresh = Net(), Net()
    model.body = nn.Sequential(*list(model.body)[:2], nn.GELU())
    model.classifier = nn.Identity()
    model.extra = nn.ModuleList([nn.Conv2d(1, 2, 1), None, nn.LayerNorm(2)])
    through_file(model, fresh, tmp_path)
    assert str(fresh) == str(model) and same(dict(fresh.state_dict()), dict(model.state_dict()))
    x = torch.randn(2, 1, 5, 5)
    assert same(fresh(x), model(x))
    assert same(fresh.extra[0](x), model.extra[0](x))


def test_what_cannot_be_captured_is_named(tmp_path):
    model = Toy()
    model.begin_task()
    model.hook = lambda x: x
    model.net.log = open(__file__)
    model.mixed = [torch.ones(1), {"f": lambda: 0}]
    model.me = [1]
    model.me.append(model.me)
    model.sparse = torch.ones(2).to_sparse()
    fresh = Toy()
    with model.net.log:
        assert set(through_file(model, fresh, tmp_path)) == {"hook", "net.log", "mixed", "me", "sparse"}
    assert not hasattr(fresh, "hook")


def test_misfits_are_user_errors(tmp_path):
    def refused(model, fresh, text):
        with pytest.raises(UserError, match=text):
            through_file(model, fresh, tmp_path)

    wide = Toy()
    wide.net.body[0] = nn.Conv2d(1, 8, 3)
    refused(wide, Toy(), r"net.body.0.weight is \(3, 1, 3, 3\) torch.float32 here and \(8,")
    refused(Net(), Toy(), "not a .*Toy")
    late = Toy()
    late.second = Memory()
    refused(late, Toy(), "second was a .*Memory")
    other = Toy()
    other.activation = torch.nn.functional.gelu
    refused(Toy(), other, "activation was .*relu")
    foreign = Toy()

    class Private(nn.Module):
        pass

    foreign.private = Private()
    refused(foreign, Toy(), "private was a .*Private")
    lambdas = Toy()
    lambdas.scheduler = torch.optim.lr_scheduler.LambdaLR(lambdas.opt, lambda i: 1.0)
    refused(lambdas, Toy(), "scheduler .*LambdaLR")


def test_skip_names_places(tmp_path):
    """A skipped network stays the fresh one; parts of that name elsewhere, and a loss that learns, are held."""
    torch.manual_seed(0)
    model, fresh = Toy(), Toy()
    for toy in (model, fresh):
        toy.inner = nn.Module()
        toy.inner.net = Net()
        toy.loss = nn.PReLU()
    model.loss.weight.data.fill_(5)
    fresh_weight = fresh.net.classifier.weight.clone()
    model.step_count, model.run = 3, object()
    skip = {"net", "run"}
    state, unsaved = checkpoint.capture(model, skip)
    assert unsaved == []
    checkpoint.save(tmp_path / "a.safetensors", state, model="toy")
    checkpoint.restore(fresh, checkpoint.load(tmp_path / "a.safetensors", model="toy"), skip)
    assert same(fresh.net.classifier.weight.detach(), fresh_weight.detach()) and fresh.step_count == 3
    assert same(dict(fresh.inner.state_dict()), dict(model.inner.state_dict())) and fresh.loss.weight.item() == 5
    assert fresh.opt.param_groups[0]["params"][0] is next(fresh.net.parameters()) and not hasattr(fresh, "run")


def test_copies_do_not_drag_the_model_along(tmp_path):
    """A hook that is a method of the model must not make a copy of the network copy the model."""
    model, fresh = Toy(), Toy()
    model.old_net = Net()
    fresh.net.register_forward_pre_hook(fresh.see)
    fresh.__dict__["stubborn"] = (i for i in [])  # cannot be deep-copied
    through_file(model, fresh, tmp_path)
    assert same(dict(fresh.old_net.state_dict()), dict(model.old_net.state_dict()))


def test_a_weight_that_was_frozen_is_frozen_again(tmp_path):
    saved = Toy()
    saved.net.classifier.weight.requires_grad_(False)
    fresh = Toy()
    checkpoint.restore(fresh, checkpoint.capture(saved)[0])
    assert not fresh.net.classifier.weight.requires_grad and fresh.net.classifier.bias.requires_grad
