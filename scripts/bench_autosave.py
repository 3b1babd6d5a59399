"""Cost of autosave: the state of a fine-tuned CLIP (weights, two moments, mean, start, previous) is saved during steps.

    python scripts/bench.py --suite io --millions 86 --seconds 60

Seconds of the wall clock, since what counts is how long a snapshot blocks the training thread.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from scripts.bench_common import Row
from utils.engine.autosave import AS_ASKED_S, SHARE, Saver, seconds_to_copy
from utils.flags import positive_int


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--millions", type=float, default=86, help="parameters of the network that is saved")
    parser.add_argument("--seconds", type=positive_int, default=60, help="length of the run with autosave")
    parser.add_argument("--autosave", type=float, default=10, help="requested seconds between saves")


def rows(args: argparse.Namespace) -> list[Row]:
    weights = [torch.randn(1024, 1024) for _ in range(max(1, round(args.millions * 1e6 / 2**20)))]
    state = {"net": weights, **{name: [w + i for w in weights] for i, name in enumerate(("m", "v", "mean"), 1)}}
    state |= {"start": [w.clone() for w in weights], "previous": [w.clone() for w in weights]}
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(args.autosave, seconds_to_copy(5 * 4 * sum(map(torch.numel, weights))))
        path, snapshots, began = Path(folder) / "auto.safetensors", [], time.monotonic()
        while time.monotonic() - began < args.seconds:
            weights[0] @ weights[0]  # a step
            if saver.due():
                saver.start(path, state, "bench")
                snapshots.append(saver.cost_s)
        took = time.monotonic() - began
        saver.wait()
        size = path.stat().st_size if path.exists() else 0
    if not snapshots:
        raise SystemExit(f"io: no snapshot was due in {args.seconds} s; give more --seconds or fewer --millions")
    limit = SHARE if args.autosave >= AS_ASKED_S else None  # more often than that is done as asked
    note = f"{len(snapshots)} snapshots in {took:.0f} s of the wall clock, {args.millions:g} million parameters"
    return [
        Row("autosave: longest block of training", max(snapshots), "s", None, note),
        Row("autosave: share of the run", sum(snapshots) / took, "", limit, note),
        Row(
            "autosave: file over the weights", size / (4 * sum(map(torch.numel, weights))), "x", None, f"{size:,} bytes"
        ),
    ]
