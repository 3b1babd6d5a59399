"""Fixtures shared by all tests: fabricated data in the real layouts, and runs in a process that can be killed."""

import json
import os
import signal
import sys
from pathlib import Path

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests import fabricate

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)
for number in (signal.SIGINT, signal.SIGHUP):  # a shell's job in the background ignores them, and so would its runs
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
torch.optim.SGD(
    [torch.zeros(1, requires_grad=True)], 0.1
)  # loads what torch loads late, once instead of in each forked run


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A --base_path with a small MNIST and CIFAR-10."""
    base = tmp_path_factory.mktemp("data")
    fabricate.mnist(base, 300, 100)
    fabricate.cifar10(base, 200, 100)
    return base


@pytest.fixture
def run_main(data, tmp_path):
    """Run the command line in this process: returns (exit code, record rows of the newest run)."""

    def run(*argv: str, results: Path | None = None) -> tuple[int, list[dict]]:
        import main

        results = results or tmp_path / "runs"
        code = main.main(
            [*argv, "--base_path", str(data), "--results_path", str(results), "--non_verbose", "1", "--device", "cpu"]
        )
        return code, newest_record(results)

    return run


def newest_record(results: Path) -> list[dict]:
    records = sorted(results.glob("*/*/*/record.jsonl"), key=lambda p: p.parent.name)
    return [json.loads(line) for line in records[-1].read_text().splitlines()] if records else []


def in_child(function) -> int:
    """Run `function` in a forked process, which may kill itself; returns its wait status."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(99)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def comparable(row: dict) -> dict:
    """A row of the record without clock and memory readings."""
    summary = {k: v for k, v in row.get("summary", {}).items() if k not in {"wall_s", "peak_bytes"}}
    return {k: v for k, v in row.items() if k not in {"seconds", "wall_s", "peak_bytes", "time", "summary"}} | {
        "summary": summary
    }
