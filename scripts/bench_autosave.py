"""Cost of autosave: the state of a fine-tuned CLIP (weights, two moments, mean, start, previous) is saved during steps.

    python scripts/bench_autosave.py --millions 86 --seconds 60

Prints the bytes of a file, the seconds that a snapshot blocks the training thread, and their share of the run.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.engine.autosave import Saver, seconds_to_copy


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, default=86, help="parameters of the network")
    parser.add_argument("--seconds", type=float, default=60, help="length of the run")
    parser.add_argument("--autosave", type=float, default=10, help="requested seconds between saves")
    args = parser.parse_args(argv)
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
        found = {
            "bytes": path.stat().st_size,
            "times_the_weights": path.stat().st_size / (4 * sum(map(torch.numel, weights))),
            "snapshots": len(snapshots),
            "seconds_each": max(snapshots),
            "share": sum(snapshots) / took,
        }
    print(", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    return found


if __name__ == "__main__":
    main()
