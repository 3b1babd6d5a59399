"""Scale-and-shift adapters in every type of the frozen weights: they stay finite, they move, and folding is exact."""

import pytest
import torch
from torch.nn.utils import parametrize

from backbone.adapters import add_ssf, layers_of
from backbone.clip import load_clip
from tests import contract
from utils.errors import UserError

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def layers(kind: str) -> tuple[torch.nn.Module, list[str], torch.Tensor]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 4)).to(TYPES[kind])
    return net, add_ssf(net, layers_of(net)), torch.randn(32, 8).to(TYPES[kind])


@pytest.mark.parametrize("kind", TYPES)
def test_every_factor_moves_and_stays_finite(kind):
    net, _, x = layers(kind)
    trained = [p for p in net.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    opt = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    for _ in range(5):
        opt.zero_grad()
        net(x).float().square().mean().backward()
        opt.step()
    for now, start in zip(trained, before, strict=True):
        assert now.dtype == torch.float32 and now.isfinite().all()
        assert (now != start).float().mean() > 0.95, "a step of 1e-3 next to 1 is seen"


@pytest.mark.parametrize("kind", TYPES)
def test_adapted_layers_by_loops_and_folded(kind):
    net, names, x = layers(kind)
    y = x
    for number, layer in enumerate(net):
        weights, biases = layer.parametrizations.weight, layer.parametrizations.bias
        gamma, beta = weights[0].gamma, biases[0].beta
        plain = type(layer)(*((layer.in_features, layer.out_features) if number != 1 else (16,))).to(TYPES[kind])
        plain.load_state_dict({"weight": weights.original, "bias": biases.original})
        y = torch.stack([gamma[k] * plain(y)[:, k].float() + beta[k] for k in range(len(gamma))], dim=1).to(TYPES[kind])
    adapted = net(x)
    torch.testing.assert_close(adapted, y, rtol=0.1 if kind != "fp32" else 1e-4, atol=0.1 if kind != "fp32" else 1e-5)
    for layer in net:
        for name in ("weight", "bias"):
            parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
    assert torch.equal(net(x), adapted) and net[0].weight.dtype == TYPES[kind]


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_a_run_on_a_half_precision_clip_moves_its_adapters(kind):
    toy = contract.build("exemplar-masking", "toy-pairs", clip_dtype=kind)
    fresh = {
        name: p.detach().clone() for name, p in toy.model.net.named_parameters() if name.endswith(("gamma", "beta"))
    }
    with contract.toys():
        toy = contract.run("exemplar-masking", "toy-pairs", clip_dtype=kind, n_epochs=1)
    assert len(fresh) > 20
    for name, p in toy.model.net.named_parameters():
        if name in fresh:
            assert p.isfinite().all() and (p != fresh[name]).float().mean() > 0.5, name


def test_all_weights_are_tuned_in_fp32_alone():
    with pytest.raises(UserError, match="--tune full"):
        contract.build("exemplar-masking", "toy-pairs", clip_dtype="bf16", tune="full")
    assert load_clip("tiny").dtype == torch.float32
