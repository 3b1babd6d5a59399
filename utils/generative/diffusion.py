"""Small denoising diffusion models of many classes, trained as one stack of networks.

Per class: an MLP D-H-(five times H)-D with SiLU that predicts the clean feature from a noisy one; the sinusoidal time
code passes a two-layer network and is added before each of the five hidden activations. 32 steps on the cosine
schedule; the loss of a row is max(1, log(sqrt(abar) / sqrt(1 - abar))) times its mean squared error.

`constants`: "released" has no offset in the cosine schedule, a time code whose slowest rate is 1 / steps, and ends each
epoch with a ragged batch; "common" has the usual offset of 0.008, rates down to 1 / 10,000, and full batches only.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import silu

from utils.generative.base import ClassGenerator, classes_per_fit, normal, pad, standardise, uniform_linear

N_HIDDEN = 5
CONSTANTS = ("released", "common")


class Diffusion(ClassGenerator):
    """Denoising diffusion with three quirks of the released code that can be turned off; the module has `constants`.

    `noise_quirk`: the training noise is a product of two normals, else one normal. `renoise_quirk`: a reverse step adds
    fresh noise to the guess of the clean feature, else it draws from the posterior of the diffusion. `n_iters` counts
    optimizer steps (AdamW, weight decay 0.01), not epochs.
    """

    kind = "diffusion"

    def __init__(
        self,
        hidden_dim: int = 256,
        n_iters: int = 500,
        lr: float = 1e-3,
        batch_size: int = 64,
        n_steps: int = 32,
        noise_quirk: bool = True,
        renoise_quirk: bool = True,
        constants: str = "released",
    ):
        super().__init__(
            hidden_dim=hidden_dim,
            n_iters=n_iters,
            lr=lr,
            batch_size=batch_size,
            n_steps=n_steps,
            noise_quirk=noise_quirk,
            renoise_quirk=renoise_quirk,
            constants=constants,
        )

    def _fit_rows(self, xs, streams, progress):
        size = sum(math.prod(s) for s in shapes(xs[0].shape[1], self.options["hidden_dim"]).values())
        width = classes_per_fit(size, xs[0])
        parts = []
        for first in range(0, len(xs), width):
            part = slice(first, first + width)
            parts.append(self._fit_stack(xs[part], streams[part], progress, first, len(xs)))
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}

    def _fit_stack(self, xs, streams, progress, n_before: int, n_all: int) -> dict[str, Tensor]:
        o = self.options
        x, counts = pad(xs)
        x, mean, std = standardise(x, counts)
        p = {k: x.new_empty(len(xs), *s) for k, s in shapes(x.shape[2], o["hidden_dim"]).items()}
        for name, weight in p.items():
            uniform_linear(weight, p[name[:-1] + "w"].shape[2], streams)
            weight.requires_grad_()
        fused = x.device.type in ("cpu", "cuda")
        adam = torch.optim.AdamW(p.values(), lr=o["lr"], weight_decay=1e-2, fused=fused)
        plans = [batch_order(len(f), o, s) for f, s in zip(xs, streams, strict=True)]
        order, share = (torch.stack(part) for part in zip(*plans, strict=True))  # (K, steps, B) each
        share = share.to(x.dtype)
        abar, codes = self._tables(x, o["hidden_dim"])
        every = max(1, o["n_iters"] // 50)
        for step in range(o["n_iters"]):
            clean = x.gather(1, order[:, step].unsqueeze(2).expand(-1, -1, x.shape[2]))  # (K, B, D)
            t, noise = self._step_noise(clean, streams)
            with torch.enable_grad():
                guess = denoise(p, add_noise(clean, noise, abar[t]), codes[t])
                error = (guess - clean).square().mean(2) * row_weight(abar[t])
                loss = (error * share[:, step]).sum()  # classes share no weight: the sum trains each on its own
                loss.backward()
            adam.step()
            adam.zero_grad()
            if progress and (step + 1) % every == 0:
                done = n_before * o["n_iters"] + (step + 1) * len(xs)
                progress(done, n_all * o["n_iters"], float(loss) / len(xs))
        return {"mean": mean, "std": std} | {k: v.detach() for k, v in p.items()}

    def _tables(self, like: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """abar (T + 1,) and time codes (T + 1, width) of the steps 0..T."""
        n, released = self.options["n_steps"], self.options["constants"] == "released"
        abar = cosine_schedule(n, 0.0 if released else 0.008)
        codes = time_code(torch.arange(n + 1, device=like.device), width, n if released else 10_000)
        return abar.to(like), codes.to(like.dtype)

    def _step_noise(self, clean: Tensor, streams: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Time steps (K, B) in 1..T and training noise (K, B, D), each class from its own stream."""
        t = torch.empty(clean.shape[:2], dtype=torch.long, device=clean.device)
        noise, factor = torch.empty_like(clean), torch.ones_like(clean)
        for k, s in enumerate(streams):
            t[k].random_(1, self.options["n_steps"] + 1, generator=s)
            noise[k].normal_(generator=s)
            if self.options["noise_quirk"]:
                factor[k].normal_(generator=s)
        return t, noise.mul_(factor)

    def _draw(self, rows, n, rng):
        abar, codes = self._tables(rows["mean"], rows["in_w"].shape[1])
        shape = (len(rows["mean"]), n, rows["mean"].shape[1])
        x = normal(shape, rng, rows["mean"])
        for step in range(self.options["n_steps"], 0, -1):
            guess = denoise(rows, x, codes[step].expand(*shape[:2], -1))
            if step > 1 and self.options["renoise_quirk"]:
                x = add_noise(guess, normal(shape, rng, x), abar[step - 1].expand(shape[:2]))
            elif step > 1:
                x = posterior(x, guess, normal(shape, rng, x), abar[step], abar[step - 1])
        return torch.addcmul(rows["mean"].unsqueeze(1), guess, rows["std"].unsqueeze(1))


def shapes(dim: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of each parameter of one class's network."""
    layers = {"in": (hidden, dim), "time1": (hidden, hidden), "time2": (hidden, hidden)}
    layers |= {f"mid{i}": (hidden, hidden) for i in range(N_HIDDEN)} | {"out": (dim, hidden)}
    return {f"{k}_{part}": s if part == "w" else (1, s[0]) for k, s in layers.items() for part in "wb"}


def denoise(p: dict[str, Tensor], x: Tensor, code: Tensor) -> Tensor:
    """Guess of the clean features (K, n, D) from noisy ones and their time codes (K, n, H)."""

    def linear(name: str, h: Tensor) -> Tensor:
        return torch.baddbmm(p[name + "_b"], h, p[name + "_w"].mT)

    when = linear("time2", silu(linear("time1", code)))
    h = silu(linear("in", x))
    for i in range(N_HIDDEN):
        h = silu(linear(f"mid{i}", h) + when)
    return linear("out", h)


def time_code(t: Tensor, dim: int, base: float) -> Tensor:
    """Sine and cosine of t at geometric rates from 1 to 1 / base: (..., dim); the last column is 0 if dim is odd."""
    half = dim // 2
    rate = torch.exp(-math.log(base) * torch.arange(half, device=t.device, dtype=torch.float64) / max(half - 1, 1))
    angle = t.unsqueeze(-1) * rate
    return torch.nn.functional.pad(torch.cat([angle.sin(), angle.cos()], -1), (0, dim - 2 * half))


def cosine_schedule(n_steps: int, offset: float) -> Tensor:
    """abar (T + 1,), the share of signal variance left after each step: 1 at step 0, about 0 at step T."""
    t = torch.arange(n_steps + 1, dtype=torch.float64) / n_steps
    f = torch.cos((t + offset) / (1 + offset) * math.pi / 2).square()
    return (f / f[0]).clamp(1e-12, 1)


def add_noise(clean: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """Noisy features at the signal shares abar (K, n)."""
    abar = abar.unsqueeze(2)
    return abar.sqrt() * clean + (1 - abar).sqrt() * noise


def posterior(x: Tensor, clean: Tensor, noise: Tensor, now: Tensor, before: Tensor) -> Tensor:
    """Draw of the previous noisy feature given this one, `x`, and the clean one; signal shares now < before."""
    step_noise = 1 - now / before  # variance that one forward step adds
    mean = before.sqrt() * step_noise * clean + (now / before).sqrt() * (1 - before) * x
    return mean / (1 - now) + (step_noise * (1 - before) / (1 - now)).sqrt() * noise


def row_weight(abar: Tensor) -> Tensor:
    """max(1, half the log signal-to-noise ratio), (K, n)."""
    return ((abar.log() - torch.log1p(-abar)) / 2).clamp(min=1)


def batch_order(n: int, options: dict, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which features each step takes and their shares in its loss, (n_iters, batch_size) each: shuffled epochs.

    With the released constants the last batch of an epoch holds what is left, padded with features of share 0; else
    epochs follow each other without a gap, so every batch is full.
    """
    steps, size = options["n_iters"], options["batch_size"]
    length = -(-n // size) * size if options["constants"] == "released" else n
    epochs = range(-(-steps * size // length))
    order = torch.stack([torch.randperm(n, generator=stream, device=stream.device) for _ in epochs])
    order = torch.nn.functional.pad(order, (0, length - n), value=-1).flatten()[: steps * size].view(steps, size)
    real = (order >= 0).to(torch.float64)
    return order.clamp(min=0), real / real.sum(1, keepdim=True)
