"""Seconds per image of the exact diagonal Fisher information, one image at a time and in the batched forms.

The forms alternate in one process, so that other load on the machine affects all of them; medians over the rounds.

    python scripts/bench.py --suite fisher [--net resnet18|clip-visual] [--images 16] [--rounds 5] [--device cpu]
"""

import argparse
from argparse import Namespace
from statistics import median

import torch
import torch.nn.functional as F

from backbone import get_backbone
from scripts.bench_common import Row, clock
from utils.flags import positive_int
from utils.per_sample import SquaredGradients

FORMS = ["loop", "vmap", "layers"]


def nll(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, labels, reduction="none")


def seconds(net, images, labels, form: str) -> tuple[float, torch.Tensor]:
    """Seconds per image, and the squares."""
    squares = SquaredGradients(net, nll, form)
    start = clock(images.device.type)
    squares.add(images, labels)
    return (clock(images.device.type) - start) / len(images), squares.flat()


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--net", choices=["resnet18", "clip-visual"], default="resnet18")
    parser.add_argument("--images", type=positive_int, default=16)
    parser.add_argument("--rounds", type=positive_int, default=5)
    parser.add_argument("--device", default="cpu")


def rows(args: argparse.Namespace) -> list[Row]:
    torch.manual_seed(0)
    named = Namespace(backbone=args.net, num_classes=100, clip_backbone="tiny", base_path="./data/", num_filters=64)
    net = get_backbone(named).to(args.device).eval()
    images = torch.randn(args.images, 3, *[32 if args.net == "resnet18" else 48] * 2, device=args.device)
    labels = torch.arange(args.images, device=args.device) % 100
    chosen = SquaredGradients(net, nll)
    chosen.add(images, labels)
    forms = [f for f in FORMS if f != "layers" or chosen.form == "layers"]
    taken: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(args.rounds):
        found = {form: seconds(net, images, labels, form) for form in forms}
        for form, (each, _) in found.items():
            taken[form].append(each)
    reference = found["loop"][1]
    lines = []
    for form in forms:
        ratio = median(b / a for a, b in zip(taken["loop"], taken[form], strict=True))
        error = float((found[form][1] - reference).norm() / reference.norm())
        note = f"{median(taken[form]):.4f} s an image, relative difference {error:.1e}" + ", chosen" * (
            form == chosen.form
        )
        lines.append(Row(f"Fisher of {args.net}, {args.images} images, {form} over loop", ratio, "x", None, note))
    return lines
