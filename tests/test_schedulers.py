"""Learning rates against hand computation."""

import math

import pytest
import torch
from torch import nn, optim

from models.sgd import Sgd
from tests.toys import Linear, ToyStream, toy_args
from utils.errors import UserError
from utils.schedulers import CosineSchedule, CosineSchedulerWithLinearWarmup, get_scheduler


def optimizer(*rates: float) -> optim.SGD:
    return optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def rates(schedule, opt, steps: int, group: int = 0) -> list[float]:
    """The rate in force before each step, and after the last."""
    found = [opt.param_groups[group]["lr"]]
    for _ in range(steps):
        opt.step()
        schedule.step()
        found.append(opt.param_groups[group]["lr"])
    return found


def toy_model(**changes) -> Sgd:
    args = toy_args(lr_milestones=[], sched_multistep_lr_gamma=0.1, **changes)
    return Sgd(Linear(6, 6), ToyStream.get_loss(), args, None, ToyStream(args))


def test_cosine_schedule():
    """K = 3: factors cos(0), cos(99 pi / 400), cos(99 pi / 200)."""
    opt = optimizer(2.0, 0.5)
    found = rates(CosineSchedule(opt, K=3), opt, 2)
    assert found == pytest.approx([2, 2 * math.cos(math.radians(44.55)), 2 * math.cos(math.radians(89.1))])
    assert found[-1] / 2 == pytest.approx(0.0157, abs=1e-4)  # 1.6 % is left at the end
    assert opt.param_groups[1]["lr"] == pytest.approx(found[-1] / 4)


def test_cosine_schedule_of_one_step_and_past_its_end():
    opt = optimizer(1.0)
    assert rates(CosineSchedule(opt, K=1), opt, 2) == [1, 1, 1]
    opt = optimizer(1.0)
    assert min(rates(CosineSchedule(opt, K=4), opt, 9)) >= 0  # never uphill


def test_warmup_then_cosine():
    """4 of 12 steps: 0, 1/4, 1/2, 3/4, then half a cosine over the other 8."""
    opt = optimizer(1.0)
    found = rates(CosineSchedulerWithLinearWarmup(opt, 4, 12), opt, 14)
    half = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(9)]
    assert found == pytest.approx([0, 0.25, 0.5, 0.75, *half, 0, 0], abs=1e-12)
    assert found[8] == pytest.approx(0.5)
    opt = optimizer(1.0)
    assert rates(CosineSchedulerWithLinearWarmup(opt, 0, 2), opt, 2) == pytest.approx([1, 0.5, 0])


def test_multistep_flag():
    model = toy_model(lr=1.0)
    model.args.lr_scheduler, model.args.lr_milestones = "multisteplr", ["2", 3]  # yaml may give strings
    schedule = get_scheduler(model, model.args)
    assert rates(schedule, model.opt, 4) == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    model.args.lr_milestones = []
    with pytest.raises(UserError, match="--lr_milestones"):
        get_scheduler(model, model.args)


def test_cosine_flag_spans_the_epochs_or_the_iterations():
    model = toy_model(lr=1.0, n_epochs=4)
    model.args.lr_scheduler = "cosine"
    half = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(5)]
    assert rates(get_scheduler(model, model.args), model.opt, 4) == pytest.approx(half, abs=1e-12)
    model.args.n_iters = 8
    assert rates(get_scheduler(model, model.args), model.opt, 4) == pytest.approx(half, abs=1e-12)  # still by epoch
    model.args.scheduler_mode = "iter"
    found = rates(get_scheduler(model, model.args), model.opt, 8)
    assert found == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(9)], abs=1e-12)


def test_no_flag_no_schedule():
    model = toy_model()
    before = model.opt
    assert get_scheduler(model, model.args) is None and model.opt is before
    model.args.lr_scheduler = "cosine"
    get_scheduler(model, model.args, reload_optim=False)
    assert model.opt is before
    get_scheduler(model, model.args)
    assert model.opt is not before
    model.opt = None
    assert get_scheduler(model, model.args) is None  # nothing to train


def test_cosine_by_iteration_ends_with_the_task():
    """Stepped every iteration, the cosine reaches 0 at the task's last batch and not after n_epochs batches."""
    from argparse import Namespace
    from types import SimpleNamespace

    import torch

    from utils.schedulers import get_scheduler

    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    model = SimpleNamespace(opt=opt, dataset=SimpleNamespace(train_loader=range(7)))
    args = Namespace(lr_scheduler="cosine", scheduler_mode="iter", n_iters=None, n_epochs=3)
    assert get_scheduler(model, args, reload_optim=False).T_max == 21
