"""The diffusion generator against separate modules, a single reverse process, and the formula of its posterior."""

import math

import pytest
import torch
from torch import nn

from tests.test_generative import SMALL, features, fitted, rng, row
from utils.generative.base import class_streams, standardise
from utils.generative.diffusion import cosine_schedule, posterior


def slow_batches(n: int, o: dict, ragged: bool, stream: torch.Generator) -> list[list[int]]:
    """The features of each step: an epoch ends with what is left, or runs on into the next."""
    steps, size, line = [], o["batch_size"], []
    while len(steps) < o["n_iters"]:
        line += torch.randperm(n, generator=stream).tolist()
        while len(line) >= size or (ragged and line):
            steps.append(line[:size])
            line = line[size:]
    return steps[: o["n_iters"]]


def slow_diffusion(x: torch.Tensor, o: dict, released: bool, stream: torch.Generator) -> dict[str, torch.Tensor]:
    """One class with modules; the published training noise. Each class draws times and noise for a full batch."""
    x, dim, h = standardise(x.unsqueeze(0), torch.tensor([len(x)]))[0][0], x.shape[1], o["hidden_dim"]
    names = ["in", "time1", "time2", "mid0", "mid1", "mid2", "mid3", "mid4", "out"]
    net = nn.ModuleDict({k: nn.Linear(dim if k == "in" else h, dim if k == "out" else h).double() for k in names})
    for layer in net.values():
        bound = layer.in_features**-0.5
        for p in (layer.weight, layer.bias):
            p.data.uniform_(-bound, bound, generator=stream)
    adam = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-2, foreach=False)
    order, silu, size = slow_batches(len(x), o, released, stream), nn.functional.silu, o["n_steps"]
    slowest, shift = (1 / size, 0) if released else (1 / 10_000, 0.008)
    rates = [slowest ** (i / (h // 2 - 1)) for i in range(h // 2)]
    cosine = [math.cos((i / size + shift) / (1 + shift) * math.pi / 2) ** 2 for i in range(size + 1)]
    for pick in order:
        t = torch.empty(o["batch_size"], dtype=torch.long).random_(1, size + 1, generator=stream)
        noise = torch.empty(o["batch_size"], dim, dtype=x.dtype).normal_(generator=stream)
        noise = noise * torch.empty_like(noise).normal_(generator=stream)
        loss = 0.0
        for i, (clean, step) in enumerate(zip(x[pick], t.tolist()[: len(pick)], strict=True)):
            share = max(cosine[step] / cosine[0], 1e-12)
            noisy = math.sqrt(share) * clean + math.sqrt(1 - share) * noise[i]
            code = torch.tensor([f(step * r) for f in (math.sin, math.cos) for r in rates], dtype=torch.float64)
            when, hidden = net["time2"](silu(net["time1"](code))), silu(net["in"](noisy))
            for k in names[3:8]:
                hidden = silu(net[k](hidden) + when)
            weight = max(1.0, math.log(math.sqrt(share) / math.sqrt(1 - share)))
            loss = loss + weight * (net["out"](hidden) - clean).square().mean() / len(pick)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return {f"{k}_{p[0]}": v.data for k, layer in net.items() for p, v in layer.named_parameters()}


@pytest.mark.parametrize("constants", ["released", "common"])
def test_stacked_diffusion_equals_modules_one_by_one(constants):
    data = features({3: 20, 9: 7})
    stacked = fitted("diffusion", data, constants=constants)
    streams = class_streams([3, 9], rng(1), torch.device("cpu"))
    for c, stream in zip((3, 9), streams, strict=True):
        ours = row(stacked, c)
        for k, slow in slow_diffusion(data[c], SMALL["diffusion"], constants == "released", stream).items():
            assert float((ours[k].view_as(slow) - slow).abs().max()) < 1e-12


def test_diffusion_posterior_keeps_the_forward_marginal():
    """If x_t follows the forward process from a known clean value, the posterior draw follows it at t - 1."""
    abar, g = cosine_schedule(32, 0.008), rng()
    assert float(abar[0]) == 1 and bool((abar.diff() < 0).all())
    clean = torch.full((200_000,), 1.7, dtype=torch.float64)
    now = abar[20].sqrt() * clean + (1 - abar[20]).sqrt() * torch.randn(clean.shape, generator=g, dtype=clean.dtype)
    before = posterior(now, clean, torch.randn(clean.shape, generator=g, dtype=clean.dtype), abar[20], abar[19])
    assert abs(float(before.mean() - abar[19].sqrt() * 1.7)) < 6 / math.sqrt(200_000)
    assert abs(float(before.var() / (1 - abar[19]) - 1)) < 6 * math.sqrt(2 / 200_000)


def slow_reverse(p: dict[str, torch.Tensor], o: dict, released: bool, draws: list[torch.Tensor]) -> torch.Tensor:
    """One sample by the reverse process: guess the clean feature, then add fresh noise of the step before."""
    h, size = o["hidden_dim"], o["n_steps"]
    slowest, shift = (1 / size, 0) if released else (1 / 10_000, 0.008)
    cosine = [math.cos((i / size + shift) / (1 + shift) * math.pi / 2) ** 2 for i in range(size + 1)]
    silu = nn.functional.silu

    def layer(name, x):
        return x @ p[f"{name}_w"].T + p[f"{name}_b"][0]

    x = draws[0]
    for number, step in enumerate(range(size, 0, -1), 1):
        code = [f(step * slowest ** (i / (h // 2 - 1))) for f in (math.sin, math.cos) for i in range(h // 2)]
        when = layer("time2", silu(layer("time1", torch.tensor(code, dtype=torch.float64))))
        hidden = silu(layer("in", x))
        for i in range(5):
            hidden = silu(layer(f"mid{i}", hidden) + when)
        clean = layer("out", hidden)
        share = max(cosine[step - 1] / cosine[0], 1e-12)
        if step > 1:
            x = math.sqrt(share) * clean + math.sqrt(1 - share) * draws[number]
    return clean * p["std"] + p["mean"]


@pytest.mark.parametrize("constants", ["released", "common"])
def test_draws_of_the_diffusion_against_one_reverse_process(constants):
    stacked = fitted("diffusion", features({3: 20}), constants=constants)
    g = rng(6)
    draws = [torch.randn(1, 1, 9, generator=g, dtype=torch.float64)[0, 0] for _ in range(8)]
    slow = slow_reverse(row(stacked, 3), SMALL["diffusion"], constants == "released", draws)
    torch.testing.assert_close(stacked.sample(torch.tensor([3]), 1, rng(6))[0, 0], slow, atol=1e-10, rtol=1e-10)
