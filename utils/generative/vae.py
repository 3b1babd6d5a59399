"""Variational autoencoders of many classes, trained as one stack of networks; only the decoders are kept.

Per class: encoder D-H-H-(mu, log-variance of Z) with batch normalization and leaky ReLU, decoder Z-H-H-D with leaky
ReLU, Adam, one cosine schedule with restarts, and the loss
    (|x - x'|^2 / 2 + KL(N(mu, exp(logvar)) || N(0, I)), summed over dimensions) / rows of the batch.
The backward pass is written by hand: it writes every gradient directly into one (K, P) buffer whose rows, one per
class, a fused Adam updates. A class with fewer batches than others is simply not updated.

Two published steps are left out because they change nothing: min-max scaling before the z-score (an affine map
that the z-score undoes) and the biases before a batch normalization (their gradient is zero).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from utils.generative.base import (
    ClassGenerator,
    classes_per_fit,
    normal,
    pad,
    row_mask,
    standardise,
    uniform_linear,
)

SLOPE = 0.2  # of leaky ReLU
NORM_EPS = 1e-5  # of batch normalization
DECODER = ("dec1_w", "dec1_b", "dec2_w", "dec2_b", "dec3_w", "dec3_b")


class Step(NamedTuple):
    """One minibatch step of an epoch: rows `start:stop` of the first `active` classes."""

    active: int  # classes are sorted by size, so those with rows left come first
    start: int
    stop: int
    rows: Tensor  # (active, 1, 1) how many rows are real
    mask: Tensor | None  # (active, B, 1) which; None if all are


class VAE(ClassGenerator):
    """Variational autoencoder; `std_quirk` keeps the published std = exp(logvar), else std = exp(logvar / 2)."""

    kind = "vae"

    def __init__(
        self,
        hidden_dim: int = 512,
        latent_dim: int = 256,
        n_iters: int = 500,
        lr: float = 2e-4,
        batch_size: int = 64,
        std_quirk: bool = True,
    ):
        super().__init__(
            hidden_dim=hidden_dim,
            latent_dim=latent_dim,
            n_iters=n_iters,
            lr=lr,
            batch_size=batch_size,
            std_quirk=std_quirk,
        )

    def _fit_rows(self, xs, streams, progress):
        order = sorted(range(len(xs)), key=lambda i: -len(xs[i]))
        size = sum(math.prod(s) for s in shapes(xs[0].shape[1], **self._widths()).values())
        width = classes_per_fit(size, xs[0])
        parts = []
        for first in range(0, len(xs), width):
            part = order[first : first + width]
            report = progress and _shifted(progress, len(parts), math.ceil(len(xs) / width))
            parts.append(self._fit_stack([xs[i] for i in part], [streams[i] for i in part], report))
        back = torch.tensor(order).argsort().to(xs[0].device)
        return {k: torch.cat([p[k] for p in parts])[back] for k in parts[0]}

    def _widths(self) -> dict[str, int]:
        return {"hidden": self.options["hidden_dim"], "latent": self.options["latent_dim"]}

    def _fit_stack(self, xs: list[Tensor], streams: list[torch.Generator], progress) -> dict[str, Tensor]:
        """Train one stack of classes, sorted by size from large to small."""
        o = self.options
        x, counts = pad(xs)
        x, mean, std = standardise(x, counts)
        spec = shapes(x.shape[2], **self._widths())
        theta = x.new_empty(len(xs), sum(math.prod(s) for s in spec.values()))
        grad = torch.zeros_like(theta)
        p, g = views(theta, spec), views(grad, spec)
        init(p, streams)
        params, grads = list(theta), list(grad)  # one row per class
        adam = torch.optim.Adam(params, lr=o["lr"], fused=theta.device.type in ("cpu", "cuda"))
        plan = batches([len(f) for f in xs], o["batch_size"], x)
        noise = x.new_zeros(*x.shape[:2], o["latent_dim"])
        index = torch.arange(x.shape[1], device=x.device).repeat(len(xs), 1)  # padding stays last
        every = max(1, o["n_iters"] // 50)
        for epoch in range(o["n_iters"]):
            for k, s in enumerate(streams):  # each class has its own stream: one draw per class and epoch
                index[k, : len(xs[k])] = torch.randperm(len(xs[k]), generator=s, device=x.device)
                noise[k, : len(xs[k])].normal_(generator=s)
            shuffled = x.gather(1, index.unsqueeze(2).expand_as(x))
            adam.param_groups[0]["lr"] = o["lr"] * cosine_restarts(epoch, max(1, o["n_iters"] // 10))
            for step in plan:
                diff, kl = gradients(p, g, shuffled, noise, step, o["std_quirk"])
                for k, (row, row_grad) in enumerate(zip(params, grads, strict=True)):
                    row.grad = row_grad if k < step.active else None  # a class without a batch is not updated
                adam.step()
            if progress and plan and (epoch + 1) % every == 0:
                progress(epoch + 1, o["n_iters"], float(loss_value(diff, kl, step)))
        return {"mean": mean, "std": std} | {k: p[k].clone() for k in DECODER}

    def _draw(self, rows, n, rng):
        latent = rows["dec1_w"].shape[2]
        z = normal((len(rows["mean"]), n, latent), rng, rows["mean"])
        return torch.addcmul(rows["mean"].unsqueeze(1), decode(rows, z)[-1], rows["std"].unsqueeze(1))


def shapes(dim: int, hidden: int, latent: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of each parameter of one class's network."""
    return {
        "enc1_w": (hidden, dim),
        "norm1_w": (1, hidden),
        "norm1_b": (1, hidden),
        "enc2_w": (hidden, hidden),
        "norm2_w": (1, hidden),
        "norm2_b": (1, hidden),
        "enc3_w": (2 * latent, hidden),  # rows: mu, then log-variance
        "enc3_b": (1, 2 * latent),
        "dec1_w": (hidden, latent),
        "dec1_b": (1, hidden),
        "dec2_w": (hidden, hidden),
        "dec2_b": (1, hidden),
        "dec3_w": (dim, hidden),
        "dec3_b": (1, dim),
    }


def views(flat: Tensor, spec: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The parameters (K, *shape) as views of the flat (K, P)."""
    parts = flat.split([math.prod(s) for s in spec.values()], dim=1)
    return {k: part.view(len(flat), *s) for (k, s), part in zip(spec.items(), parts, strict=True)}


def init(p: dict[str, Tensor], streams: list[torch.Generator]) -> None:
    """PyTorch's default initialization of linear and normalization layers."""
    for name, weight in p.items():
        if name.startswith("norm"):
            weight.fill_(float(name.endswith("w")))
        else:
            uniform_linear(weight, p[name[:-1] + "w"].shape[2], streams)


def batches(counts: list[int], batch_size: int, like: Tensor) -> list[Step]:
    """The steps of an epoch for classes sorted by size; a batch of one row has no batch statistics and is skipped."""
    plan = []
    for start in range(0, counts[0] - 1, batch_size):
        sizes = [min(n - start, batch_size) for n in counts if n - start > 1]
        rows = torch.tensor(sizes, device=like.device, dtype=like.dtype)  # 1 / integer would be float32
        mask = None if sizes[-1] == sizes[0] else row_mask(rows, sizes[0])
        plan.append(Step(len(sizes), start, start + sizes[0], rows.view(-1, 1, 1), mask))
    return plan


def cosine_restarts(epoch: int, first: int) -> float:
    """Factor on the learning rate: a half cosine from 1 to 0 over `first` epochs, then again over twice as many, ..."""
    cycle = first
    while epoch >= cycle:
        epoch, cycle = epoch - cycle, 2 * cycle
    return (1 + math.cos(math.pi * epoch / cycle)) / 2


def gradients(p, g, x: Tensor, noise: Tensor, step: Step, std_quirk: bool) -> tuple[Tensor, Tensor]:
    """Write the loss gradient of one step into `g`; return the residuals (a, B, D) and KL terms (a, B, Z), unsummed."""
    a, mask = step.active, step.mask
    p, g = {k: v[:a] for k, v in p.items()}, {k: v[:a] for k, v in g.items()}
    x, noise = x[:a, step.start : step.stop], noise[:a, step.start : step.stop]
    h1, back1 = norm_act(torch.bmm(x, p["enc1_w"].mT), p["norm1_w"], p["norm1_b"], step)
    h2, back2 = norm_act(torch.bmm(h1, p["enc2_w"].mT), p["norm2_w"], p["norm2_b"], step)
    mu, logvar = torch.baddbmm(p["enc3_b"], h2, p["enc3_w"].mT).chunk(2, 2)
    var = logvar.exp()
    spread = noise * (var if std_quirk else (logvar / 2).exp())
    z = mu + spread
    d1, d2, out = decode(p, z)
    diff = out - x if mask is None else (out - x) * mask
    d_out = diff / step.rows
    d_2 = slope(d2, linear_back(g, "dec3", p["dec3_w"], d2, d_out))
    d_1 = slope(d1, linear_back(g, "dec2", p["dec2_w"], d1, d_2))
    d_z = linear_back(g, "dec1", p["dec1_w"], z, d_1)
    real = 1 / step.rows if mask is None else mask / step.rows
    d_logvar = d_z * spread * (1.0 if std_quirk else 0.5) + (var - 1) * (0.5 * real)
    d_h2 = linear_back(g, "enc3", p["enc3_w"], h2, torch.cat([d_z + mu * real, d_logvar], 2))
    d_pre2 = norm_act_back(g, "norm2", p["norm2_w"], h2, back2, d_h2, step)
    torch.bmm(d_pre2.mT, h1, out=g["enc2_w"])
    d_pre1 = norm_act_back(g, "norm1", p["norm1_w"], h1, back1, torch.bmm(d_pre2, p["enc2_w"]), step)
    torch.bmm(d_pre1.mT, x, out=g["enc1_w"])
    return diff, var + mu.square() - 1 - logvar


def decode(p: dict[str, Tensor], z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two hidden layers and the standardized features (K, n, D) of latents (K, n, Z)."""
    d1 = leaky_relu(torch.baddbmm(p["dec1_b"], z, p["dec1_w"].mT), SLOPE, inplace=True)
    d2 = leaky_relu(torch.baddbmm(p["dec2_b"], d1, p["dec2_w"].mT), SLOPE, inplace=True)
    return d1, d2, torch.baddbmm(p["dec3_b"], d2, p["dec3_w"].mT)


def norm_act(h: Tensor, weight: Tensor, bias: Tensor, step: Step) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Batch normalization over the real rows (biased variance) and leaky ReLU; and what the backward pass needs."""
    h = h if step.mask is None else h * step.mask
    centred = h - h.sum(1, keepdim=True) / step.rows
    centred = centred if step.mask is None else centred * step.mask
    inverse = (centred.square().sum(1, keepdim=True) / step.rows + NORM_EPS).rsqrt()
    unit = centred * inverse  # (a, B, H)
    return leaky_relu(torch.addcmul(bias, unit, weight), SLOPE, inplace=True), (unit, inverse)


def norm_act_back(g, name: str, weight: Tensor, out: Tensor, saved, d_out: Tensor, step: Step) -> Tensor:
    """Gradient before `norm_act`; writes those of its weight and bias. Padded rows of `d_out` are zero."""
    unit, inverse = saved
    d = slope(out, d_out)
    d_bias, d_weight = d.sum(1, keepdim=True), (d * unit).sum(1, keepdim=True)
    g[name + "_b"].copy_(d_bias)
    g[name + "_w"].copy_(d_weight)
    d = (d - d_bias / step.rows - unit * (d_weight / step.rows)) * (weight * inverse)
    return d if step.mask is None else d * step.mask


def slope(out: Tensor, d: Tensor) -> Tensor:
    """Gradient through leaky ReLU, whose output has the sign of its input."""
    return torch.ops.aten.leaky_relu_backward(d, out, SLOPE, True)


def linear_back(g, name: str, weight: Tensor, x: Tensor, d: Tensor) -> Tensor:
    """Write the gradients of a linear layer, return that of its input."""
    torch.bmm(d.mT, x, out=g[name + "_w"])
    torch.sum(d, 1, keepdim=True, out=g[name + "_b"])
    return torch.bmm(d, weight)


def loss_value(diff: Tensor, kl: Tensor, step: Step) -> Tensor:
    """Mean loss over the classes of a step, up to the constant of the Gaussian density."""
    kl = kl if step.mask is None else kl * step.mask
    total = diff.square().sum((1, 2)) + kl.sum((1, 2))
    return (total / (2 * step.rows.flatten())).mean()


def _shifted(progress, part: int, n_parts: int):
    return lambda done, total, loss: progress(part * total + done, n_parts * total, loss)
