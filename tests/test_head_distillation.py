"""Distillation of the answer head, shared by CluMo and the prompt methods: values by hand, and the same for all."""

import math

import pytest
import torch

from models.utils.head_distillation import head_divergence
from tests import contract
from tests.test_prompt_baselines import begun, loss_of_a_batch
from utils.errors import UserError

METHODS = {"l2p": {}, "dualprompt": {}, "s-prompts": {"head": "shared"}}


@pytest.fixture(autouse=True)
def toy_streams(monkeypatch):
    monkeypatch.setattr(contract.ToyPairs, "HAS_TEXT", True)
    with contract.toys():
        yield


def test_divergence_by_hand():
    """One state (1, 2); the teacher knows two answers, the head three."""
    seen = torch.tensor([[1.0, 2.0]])
    teacher = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, -1.0]])  # logits 1.5 and 1
    logits = torch.tensor([[0.5, 3.0, 9.0]])
    assert float(head_divergence(logits, seen, teacher, "mse")) == pytest.approx((1.0**2 + 2.0**2) / 2)
    q = 1 / (1 + math.exp((1.0 - 1.5) / 2))  # the teacher's softmax at temperature 2
    p = 1 / (1 + math.exp((3.0 - 0.5) / 2))
    wanted = 4 * (q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)))
    assert float(head_divergence(logits, seen, teacher, "kl")) == pytest.approx(wanted, rel=1e-5)


def test_states_get_the_gradient_of_their_own_logits_alone():
    """d/ds of mean((W s - c)^2) is 2 (W s - c) W / (B A), c being what the teacher says."""
    states, weight, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3), torch.randn(2, 4)
    head_divergence(states @ weight.T, states, teacher, "mse").backward()
    with torch.no_grad():
        away = states @ weight.T - (states @ teacher[:, :3].T + teacher[:, 3])
        torch.testing.assert_close(states.grad, 2 * away @ weight / 8)


@pytest.mark.parametrize("kind", ["mse", "kl"])
@pytest.mark.parametrize("name", METHODS)
def test_prompt_methods_add_the_distillation_that_clumo_uses(name, kind):
    toy = begun(name, "toy-pairs", tasks=2, kd_weight=0.7, kd_type=kind, **METHODS[name])
    model = toy.model
    with torch.no_grad():
        model.head.weight.add_(torch.randn_like(model.head.weight))
    old = len(model.teacher)
    assert 0 < old < len(model.head.answers)
    states, labels = torch.randn(6, model.width), model.head.answers[model.current][:1].repeat(6)
    whole = model.head_loss(states, labels)
    model.args.kd_weight = 0.0
    plain = model.head_loss(states, labels)
    clumo = contract.build("clumo", "toy-pairs", kd_type=kind).model  # CluMo's own, on the same states and teacher
    clumo.teacher = model.teacher
    expected = clumo.distillation(model.head(states), states, None, None, None)
    torch.testing.assert_close(whole - plain, 0.7 * expected)
    assert expected > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_the_teacher_is_the_head_after_the_task_before_and_none_without_weight(name):
    with_kd, without = (begun(name, "toy-pairs", 2, **METHODS[name], kd_weight=weight) for weight in (1.0, 0.0))
    for toy in (with_kd, without):
        loss_of_a_batch(toy)
        toy.model.meta_end_task(toy.dataset)
    head = with_kd.model.head
    assert torch.equal(with_kd.model.teacher, torch.cat([head.weight, head.bias[:, None]], dim=1))
    assert not with_kd.model.teacher.requires_grad and without.model.teacher is None


def test_s_prompts_distills_one_head_for_all_tasks_only():
    with pytest.raises(UserError, match="--head shared"):
        contract.build("s-prompts", "toy-pairs", kd_weight=1.0)


def test_s_prompts_shared_head_answers_with_every_answer_seen():
    toy = begun("s-prompts", "toy-pairs", tasks=2, head="shared")
    inputs = next(iter(toy.dataset.train_loader))[0]
    seen = len(toy.model.head.answers)
    assert (toy.model(inputs) > -1e3).sum(1).eq(seen).all() and not len(toy.model.heads)
