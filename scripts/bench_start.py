"""How long it takes to start: commands that are answered without torch, and the time to the first training step.

python scripts/bench.py --suite start
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import torchvision  # noqa: F401  (the time to the first step begins after these imports)

from scripts.bench_common import ROOT, Row, in_child
from scripts.bench_engine import generated_files, run_argv
from utils.flags import positive_int

ANSWERED = {  # command -> bound on its seconds
    "--help": 0.3,
    "--list": 0.5,
    "--model er --dataset seq-mnist --help": 0.5,
    "--model cgil --dataset seq-tiny --help": 0.5,
    "--model cgil --dataset seq-tiny --show_config": 0.5,
    "--model er --dataset seq-mnist --buffer_size 9 --lrr 1": 0.5,
}


def start_rows(repeats: int) -> list[Row]:
    """Seconds of commands that are answered without torch: help, listings, tables of values, errors."""
    rows = []
    for command, bound in ANSWERED.items():
        argv = [str(ROOT / "main.py"), *command.split()]
        cpu, wall = zip(*(child_seconds(argv) for _ in range(repeats)), strict=True)
        rows.append(
            Row(f"main.py {command}", statistics.median(cpu), "s", bound, f"wall {statistics.median(wall):.2f} s")
        )
    return rows


def child_seconds(argv: list[str]) -> tuple[float, float]:
    """Processor seconds and wall seconds of a Python process."""
    begun, before = time.perf_counter(), os.times()
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True)
    if done.returncode not in {0, 2} or "Traceback" in done.stderr:
        raise SystemExit(done.stderr)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, time.perf_counter() - begun


def first_rows(repeats: int, small: str, runs: str) -> list[Row]:
    """Seconds from the return of `import torch; import torchvision` to the end of the first training step."""
    rows = []
    for dataset, filters in (("seq-mnist", None), ("seq-cifar10", 8), ("seq-cifar10", 64)):
        wide = ["--num_filters", str(filters)] if filters else []
        argv = run_argv("er", dataset, small, runs, "--n_iters", "1", "--fitting_mode", "iters", *wide)
        found = [in_child("bench_start", "first", *argv) for _ in range(repeats)]
        begin, end, wall = (statistics.median(f[k] for f in found) for k in ("begin", "end", "wall"))
        net = f"resnet18 x{filters}" if filters else "mnistmlp"
        note = f"wall {wall:.2f} s; the step itself {end - begin:.2f} s"
        if filters == 64:  # the step itself is longer than the bound on one slow core
            rows.append(Row(f"start to first step, {dataset}, {net}", begin, "s", 1.0, note))
        else:
            rows.append(Row(f"start to end of first step, {dataset}, {net}", end, "s", 1.0, note))
    return rows


def child_first(argv: list[str]) -> dict:
    begun, begun_wall = time.process_time(), time.perf_counter()
    import main
    from utils.engine import training

    class Done(Exception):
        pass

    step, found = training.Fit.step, {}

    def timed(*given):
        found["begin"] = time.process_time() - begun
        step(*given)
        found.update(end=time.process_time() - begun, wall=time.perf_counter() - begun_wall)
        raise Done

    training.Fit.step = timed
    try:
        sys.exit(f"main.py {' '.join(argv)} exited with {main.main(argv)} before a step")
    except Done:
        return found


CHILDREN = {"first": child_first}


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=positive_int, default=5)
    parser.add_argument("--commands_only", action="store_true", help="not the time to the first step")


def rows(args: argparse.Namespace) -> list[Row]:
    found = start_rows(args.repeats)
    if args.commands_only:
        return found
    with generated_files(large=False) as folders:
        return found + first_rows(args.repeats, folders["small"], folders["runs"])
