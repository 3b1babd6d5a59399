"""Times the stacked VAE fit against a class-by-class loop with a DataLoader and a loss read-out per step.

    python scripts/bench_generative.py                       # 20 classes x 120 features x 512 dimensions, 10 epochs
    python scripts/bench_generative.py --device cuda --epochs 50
    python scripts/bench_generative.py --stack_bytes 0 8e6 1e9   # how many classes to train in one stack

The two forms alternate; the medians and their ratio are printed. The default of a run is 500 epochs; the time of both
forms is proportional to the epochs, so the bench runs fewer.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
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


def seconds(call, device: str) -> float:
    """Seconds of processor time on a CPU, which other programs disturb least; of the wall clock on a GPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"classes": 20, "samples": 120, "dim": 512, "hidden_dim": 512, "latent_dim": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stack_bytes", type=float, nargs="*", help="budgets to compare with each other")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
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
    times = {name: [] for name in forms}
    for call in forms.values():
        seconds(call, args.device)  # warm-up, not counted
    for _ in range(args.repeats):
        for name, call in forms.items():
            times[name].append(seconds(call, args.device))
    steps = args.classes * args.epochs * -(-args.samples // 64)
    shape = f"{args.classes} classes x {args.samples} x {args.dim}"
    print(f"{shape}, {args.epochs} epochs, {args.device}, {args.threads} thread(s), torch {torch.__version__}")
    for name, t in times.items():
        middle = statistics.median(t)
        spread = f"{min(t):.2f} to {max(t):.2f}"
        print(f"{name:34s} median {middle:7.2f} s ({spread}), {1e3 * middle / steps:6.2f} ms per class and step")
    if not args.stack_bytes:
        ours, plain = (statistics.median(t) for t in times.values())
        print(f"ratio {plain / ours:.2f}")


if __name__ == "__main__":
    main()
