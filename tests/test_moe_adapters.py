"""Experts in CLIP's blocks: against a loop over images, at the start, off, frozen, and with a router of each image."""

import functools

import pytest
import torch
from torch.nn.functional import normalize

from backbone.experts import Experts, add_experts
from tests import contract
from utils.errors import UserError


@pytest.fixture(autouse=True)
def toys():
    with contract.toys():
        yield


def made(n=3, top_k=2, routers=1, on_token=True, seed=0):
    """Experts of width 6 with all numbers drawn, in eval mode."""
    experts = Experts(6, 4, n, top_k, routers, on_token).eval()
    draw = torch.Generator().manual_seed(seed)
    for parameter in experts.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw)
    return experts


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_loops(experts, x, router=0):
    """(S, B, W), one image and one expert at a time."""
    out = torch.zeros_like(x)
    for b in range(x.shape[1]):
        weight = experts.route[router]
        logits = (x[0, b] @ weight if experts.on_token else weight).tolist()
        best = sorted(range(len(logits)), key=lambda e: -logits[e])[: experts.top_k]
        shares = torch.tensor([logits[e] for e in best]).softmax(0)
        for share, e in zip(shares, best, strict=True):
            inner = (x[:, b] @ experts.down[e].T + experts.down_bias[e]).relu()
            out[:, b] += 0.1 * share * (inner @ experts.up[e].T + experts.up_bias[e])
    return out


@pytest.mark.parametrize("n, top_k", [(3, 2), (3, 3), (2, 2), (4, 1)])
@pytest.mark.parametrize("on_token", [True, False])
def test_experts_by_loops(n, top_k, on_token):
    experts, x = made(n, top_k, on_token=on_token), drawn(5, 4, 6)
    torch.testing.assert_close(experts(x), by_loops(experts, x), atol=1e-5, rtol=1e-5)
    gates = experts.gates(x)
    assert (gates > 0).sum(1).tolist() == [top_k] * 4
    torch.testing.assert_close(gates.sum(1), torch.ones(4))
    torch.testing.assert_close(experts.all_of(x, gates), experts.chosen_only(x, gates), atol=1e-5, rtol=1e-5)


def test_a_router_of_each_image_and_none():
    experts, x = made(routers=2), drawn(5, 3, 6)
    experts.router = torch.tensor([1, -1, 0])
    found = experts(x)
    torch.testing.assert_close(found[:, :1], by_loops(experts, x[:, :1], 1), atol=1e-5, rtol=1e-5)
    assert not found[:, 1].any()
    torch.testing.assert_close(found[:, 2:], by_loops(experts, x[:, 2:], 0), atol=1e-5, rtol=1e-5)
    experts.router = -1
    assert not experts(x).any()


def test_noise_is_drawn_in_training_only():
    experts, x = made(2, 2), drawn(3, 4000, 6)
    experts.route.data.zero_()
    experts.noise.data.zero_()
    assert torch.equal(experts.gates(x), torch.full((4000, 2), 0.5))
    torch.manual_seed(0)
    gates = experts.train().gates(x).detach()
    spread = 0.01 + torch.tensor(2.0).log()  # softplus(0) + the floor, on each of two logits
    assert float((gates[:, 0] / gates[:, 1]).log().std()) == pytest.approx(float(spread) * 2**0.5, rel=0.05)


def test_experts_read_the_residual_stream():
    block, x = torch.nn.Module(), drawn(5, 4, 6)
    block.ln_2, block.mlp = torch.nn.LayerNorm(6), torch.nn.Linear(6, 6)
    norm, mlp = block.ln_2, block.mlp
    (experts,) = add_experts([block], hidden=4, n=2, top_k=2)
    for parameter in experts.parameters():
        parameter.data += 0.5
    experts.eval()
    torch.testing.assert_close(block.mlp(block.ln_2(x)), mlp(norm(x)) + by_loops(experts, x))


def test_more_chosen_than_there_are():
    with pytest.raises(UserError, match="--top_k 3 is more than the number of experts, 2"):
        Experts(6, 4, 2, 3)


def test_the_most_used_are_frozen():
    experts, x = made(3, 1).train(), drawn(5, 50, 6)
    experts.route.data.zero_()
    experts.noise.data.fill_(-50.0)
    experts.route.data[:, :, 2] = 10 * x[0].mean(0)
    experts.gates(x)
    used = experts.used.clone()
    assert used.sum() == 50
    experts.freeze_most_used()
    for e in range(3):
        assert experts.down[e].requires_grad is (e != int(used.argmax()))
        assert experts.up_bias[e].requires_grad is (e != int(used.argmax()))
    assert not experts.used.any()


@functools.cache
def trained():
    return contract.run("moe-adapters", test_templates="first")


def zero_shot(toy, inputs):
    clip = contract.build("clip").model
    return clip.logits(clip.net.encode_image(inputs), clip.text_features(toy.dataset.get_class_names()))


@pytest.mark.parametrize("form", ["class-il", "mtil"])
def test_at_first_it_is_the_frozen_clip(form):
    toy = contract.build("moe-adapters", form=form, test_templates="first")
    toy.dataset.get_data_loaders()
    toy.model.meta_begin_task(toy.dataset)
    inputs = torch.rand(4, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            toy.model.eval().future_forward(inputs), zero_shot(toy, inputs), atol=1e-3, rtol=1e-4
        )


def test_only_experts_are_trained():
    toy = trained()
    start = contract.build("moe-adapters").model.net.state_dict()
    moved = {k for k, v in toy.model.net.state_dict().items() if not torch.equal(v, start[k])}
    assert moved and all(".experts." in k for k in moved)
    assert {"visual", "transformer"} <= {k.split(".")[1] for k in moved}, "both towers"


@torch.no_grad()
def test_an_unknown_image_is_answered_by_the_frozen_clip(monkeypatch):
    toy = trained()
    inputs = contract.images_of(toy)[0]
    expected = zero_shot(toy, inputs)
    assert not torch.allclose(toy.model.future_forward(inputs), expected, atol=0.1)
    monkeypatch.setattr(toy.args, "unknown_above", 0.0)
    torch.testing.assert_close(toy.model.future_forward(inputs), expected, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_each_image_is_answered_by_the_router_of_its_least_error():
    toy = trained()
    model, inputs = toy.model, contract.images_of(toy)[0]
    found = model.encode(inputs)
    for row, image in zip(found[:8], inputs[:8], strict=True):
        model.route(-1, -1)
        plain = normalize(model.net.encode_image(image[None]), dim=1)
        errors = [float(((net(plain) - plain) ** 2).sum()) for net in model.coders.nets]
        task = -1 if min(errors) > toy.args.unknown_above else errors.index(min(errors))
        assert int(row[-1]) == task
        model.route(task, task)
        own = normalize(model.net.encode_image(image[None]), dim=1)
        torch.testing.assert_close(row[:-1], own[0], atol=1e-5, rtol=1e-4)
        texts = normalize(model.net.encode_text(model.net.tokenize("a photo of a cup.")), dim=1)
        torch.testing.assert_close(model.all_keys()[task, 0], texts[0], atol=1e-5, rtol=1e-4)
    assert len(found[:, -1].unique()) > 2


def test_routers_of_other_tasks_do_not_move():
    toy = trained()
    for experts in toy.model.seers:
        assert len({tuple(r.flatten().tolist()) for r in experts.route}) == 3
    first = contract.run("moe-adapters", stop_after=0).model
    for experts in (*first.seers, *first.readers):
        assert experts.route[0].any() and not experts.route[1:].any()
        assert sum(not p.requires_grad for p in experts.down) == 2, "the top_k most used are frozen"
