"""How the time of a run grows with the number of tasks T, for one method of each kind, on tasks of equal size.

    python scripts/bench.py --suite growth [--tasks 5 10 20] [--methods er cgil]

The images are random, 48 x 48, two classes a task. Runs train in this process, one after another; seconds are
those of the loop over tasks, the last evaluation included. A value of the table is the exponent e of seconds ~ T^e, by
least squares on the logarithms. Evaluation after each task puts T (T + 1) / 2 test sets through the network, so images,
and in the long run seconds, grow with an exponent between 1 and 2.
"""

import argparse
import tempfile
from collections.abc import Sequence

import numpy as np

from scripts import bench_noise
from scripts.bench_common import Row, quiet, seconds
from scripts.bench_engine import build
from utils.errors import UserError
from utils.flags import positive_int

SHORT = "--n_epochs 1 --batch_size 16"
METHODS = {  # kind and flags
    "sgd": ("nothing against forgetting", f"{SHORT} --lr 0.01"),
    "er": ("replay", f"{SHORT} --lr 0.01 --buffer_size 50"),
    "ewc-on": ("regularization", f"{SHORT} --lr 0.01 --e_lambda 10 --gamma 1"),
    "lwf": ("distillation", f"{SHORT} --lr 0.01"),
    "slda": ("closed form", ""),
    "l2p": ("prompts", f"{SHORT} --lr 0.01"),
    "zscl": ("tuned CLIP", f"{SHORT} --lr 0.00001 --reference synthetic --n_reference 32"),
    "cgil": ("generators", "--gr_vae_n_iters 5 --num_epochs_alignment 1"),
}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """e of values ~ sizes^e: the slope of a line through the logarithms, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def run(method: str, tasks: int, images: int) -> tuple[float, int]:
    """Processor seconds of training and evaluation, and images that went through the network."""
    from utils.engine.training import train

    with tempfile.TemporaryDirectory() as base, bench_noise.known(bench_noise.stream(tasks, 2, images, 48)), quiet():
        argv = ["--model", method, "--dataset", bench_noise.STREAM, "--seed", "0", "--device", "cpu"]
        argv += ["--base_path", base, "--results_path", f"{base}/runs"]
        model, dataset, args, record, _ = build([*argv, *METHODS[method][1].split()])
        spent = seconds(lambda: train(model, dataset, args, record))
    return spent, model.image_forwards


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", type=positive_int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--images", type=positive_int, default=32, help="in a task, for training and for test")


def rows(args: argparse.Namespace) -> list[Row]:
    if len(set(args.tasks)) < 2:
        raise UserError("--tasks: two different numbers at least, for a line through them")
    found = []
    for method in args.methods:
        run(method, min(args.tasks), args.images)  # what torch and the method load late
        spent, images = zip(*(run(method, tasks, args.images) for tasks in args.tasks), strict=True)
        where, name = ", ".join(map(str, args.tasks)), f"{method} ({METHODS[method][0]})"
        note = f"{', '.join(f'{s:.2f}' for s in spent)} s at T = {where}"
        found.append(Row(f"{name}: exponent of seconds", exponent(args.tasks, spent), "", None, note))
        note = f"{', '.join(f'{n:,}' for n in images)} at T = {where}"
        found.append(Row(f"{name}: exponent of encoded images", exponent(args.tasks, images), "", 2.0, note))
    return found
