"""Times the stacked VAE fit against a class-by-class loop with a DataLoader and a loss read-out per step.

    python scripts/bench.py --suite generative               # 20 classes x 120 features x 512 dimensions, 10 epochs
    python scripts/bench.py --suite generative --device cuda --epochs 50
    python scripts/bench.py --suite generative --stack_bytes 0 8e6 1e9   # how many classes to train in one stack

The two forms alternate; medians count. The default of a run is 500 epochs; the time of both
forms is proportional to the epochs, so the bench runs fewer.
"""

import argparse
import statistics

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from scripts.bench_common import Row, in_turn
from utils.flags import positive_int
from utils.generative import base as class_generator
from utils.generative.vae import VAE


def norm_net(dims: list[int]) -> nn.Sequential:
    """Linear layers, all but the last with batch normalization and leaky ReLU."""
    layers = []
    for a, b in zip(dims[:-2], dims[1:-1], strict=True):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(dims[-2], dims[-1]))


def plain_fit(features: list[torch.Tensor], args: argparse.Namespace) -> float:
    """One class after another, as a first version would be written; the sum of all step losses."""
    total, h = 0.0, args.hidden_dim
    for x in features:
        z = (x - x.mean(0)) / x.std(0)
        encoder = norm_net([x.shape[1], h, h, 2 * args.latent_dim]).to(x.device)
        decoder = nn.Sequential(
            *(nn.Linear(args.latent_dim, h), nn.LeakyReLU(0.2), nn.Linear(h, h), nn.LeakyReLU(0.2)),
            nn.Linear(h, x.shape[1]),
        ).to(x.device)
        adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(adam, max(1, args.epochs // 10), 2)
        for _ in range(args.epochs):
            for (batch,) in DataLoader(TensorDataset(z), batch_size=64, shuffle=True):
                if len(batch) == 1:
                    continue
                mu, logvar = encoder(batch).chunk(2, 1)
                out = decoder(mu + logvar.exp() * torch.randn_like(mu))
                kl = (logvar.exp() + mu.square() - 1 - logvar).sum()
                loss = ((out - batch).square().sum() + kl) / (2 * len(batch))
                adam.zero_grad()
                loss.backward()
                adam.step()
                total += loss.item()
            schedule.step()
    return total


def random_features(args: argparse.Namespace) -> list[torch.Tensor]:
    """(samples, dim) of each class."""
    torch.manual_seed(0)
    return [torch.randn(args.samples, args.dim, device=args.device) for _ in range(args.classes)]


def flags(parser: argparse.ArgumentParser) -> None:
    for name, value in {"classes": 20, "samples": 120, "dim": 512, "hidden_dim": 512, "latent_dim": 256}.items():
        parser.add_argument(f"--{name}", type=positive_int, default=value)
    parser.add_argument("--epochs", type=positive_int, default=10)
    parser.add_argument("--repeats", type=positive_int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stack_bytes", type=float, nargs="+", help="budgets to compare with each other")


def rows(args: argparse.Namespace) -> list[Row]:
    features = random_features(args)
    stacked = VAE(args.hidden_dim, args.latent_dim, n_iters=args.epochs)

    def fit(budget: float):
        def run():
            class_generator.FIT_BYTES[args.device] = int(budget)
            stacked.fit(dict(enumerate(features)))

        return run

    default = class_generator.FIT_BYTES[args.device]
    forms = {f"stacked, {b / 2**20:.0f} MiB a stack": fit(b) for b in args.stack_bytes or [default]}
    if not args.stack_bytes:
        forms["class by class, DataLoader"] = lambda: plain_fit(features, args)
    times = in_turn(forms, args.repeats, args.device)
    steps = args.classes * args.epochs * -(-args.samples // 64)
    shape = f"{args.classes} classes x {args.samples} x {args.dim}, {args.epochs} epochs"
    found = []
    for name, t in times.items():
        note = f"{statistics.median(t):.2f} s ({min(t):.2f} to {max(t):.2f}); {shape}"
        found.append(Row(f"VAE fit, {name}", 1e3 * statistics.median(t) / steps, "ms a class and step", None, note))
    if not args.stack_bytes:
        ratio = found[0].value / found[1].value
        found.append(Row("stacked over class by class", ratio, "x", 1.0, f"{1 / ratio:.2f} times as fast"))
    return found
