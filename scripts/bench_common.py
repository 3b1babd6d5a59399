"""What the benches share: rows, clocks, steps in turn, processes of their own. `python scripts/bench.py` runs them."""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from utils import json_text

ROOT = Path(__file__).resolve().parents[1]


class Row(NamedTuple):
    """One line of a table; `limit` is the largest allowed `value`, None where a figure is only shown."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    note: str = ""

    @property
    def broken(self) -> bool:
        return self.limit is not None and not self.value <= self.limit


def clock(device: str = "cpu") -> float:
    """Seconds of processor time, which other programs disturb least; of the wall clock where a GPU does the work."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(call: Callable, device: str = "cpu") -> float:
    began = clock(device)
    call()
    return clock(device) - began


def in_turn(calls: dict[str, Callable], repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each call, `repeats` times in turn, after one round that is not counted."""
    rounds = [{name: seconds(call, device) for name, call in calls.items()} for _ in range(repeats + 1)]
    return {name: [found[name] for found in rounds[1:]] for name in calls}


def medians(times: dict[str, list[float]]) -> list[float]:
    return [statistics.median(values) for values in times.values()]


def in_child(module: str, name: str, *argv: object) -> dict:
    """Run one of the module's CHILDREN in a fresh process and read the figures that it prints last."""
    call = [sys.executable, str(ROOT / "scripts" / "bench.py"), "--child", module, name, *map(str, argv)]
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(call)} failed:\n{done.stderr}")
    return json_text.parse(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard what a run prints."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
