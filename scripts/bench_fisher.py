"""Seconds per image of the exact diagonal Fisher information, one image at a time and in the batched forms.

The forms alternate in one process, so that other load on the machine affects all of them; medians over the rounds.
Usage: bench_fisher.py [--net resnet18|clip-visual] [--images 16] [--rounds 5] [--device cpu]
"""

import argparse
import sys
import time
from argparse import Namespace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backbone import get_backbone
from utils.per_sample import SquaredGradients

FORMS = ["loop", "vmap", "layers"]


def nll(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, labels, reduction="none")


def seconds(net, images, labels, form: str) -> tuple[float, torch.Tensor]:
    """Seconds per image, and the squares."""
    squares = SquaredGradients(net, nll, form)
    start = time.perf_counter()
    squares.add(images, labels)
    if images.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / len(images), squares.flat()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=["resnet18", "clip-visual"], default="resnet18")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
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
    print(
        f"{args.net}, {args.images} images, {args.device}, {torch.get_num_threads()} thread(s); chosen: {chosen.form}"
    )
    for form in forms:
        ratio = median(a / b for a, b in zip(taken["loop"], taken[form], strict=True))
        error = float((found[form][1] - reference).norm() / reference.norm())
        print(f"{form:7} {median(taken[form]):.4f} s/image   {ratio:.2f} x loop   relative difference {error:.1e}")


if __name__ == "__main__":
    main()
