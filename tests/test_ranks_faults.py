"""Two ranks under torchrun on this machine: killed, stopped and continued runs end with the numbers of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import fabricate

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
FLAGS = "--model er --dataset seq-mnist --backbone mnistmlp --buffer_size 60 --lr 0.05 --n_epochs 6 --batch_size 10"
FLAGS += " --device cpu --seed 3 --non_verbose 1 --autosave 0.5"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    fabricate.mnist(folder, 1200, 300)
    return folder


def command(size: int, base: Path, results: Path, *more: str) -> list[str]:
    flags = [*FLAGS.split(), "--base_path", str(base), "--results_path", str(results), *more]
    if size == 1:
        return [sys.executable, "main.py", *flags]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(size)]
    return [*torchrun, "main.py", *flags, "--distributed", "ddp"]


def environment() -> dict:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def finish(*args, **named) -> str:
    done = subprocess.run(command(*args, **named), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(results: Path) -> list[dict]:
    found = list(results.glob("*/*/*/record.jsonl"))
    return [json.loads(line) for line in found[-1].read_text().splitlines()] if found else []


def scores(results: Path) -> list:
    return [row["scores"] for row in rows(results) if row["type"] == "task"]


def ranks_of(parent: int, results: Path) -> list[int]:
    """Process numbers of the ranks, in their order."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "environ").read_bytes().split(b"\0")
            line = (path / "cmdline").read_bytes()
        except OSError:
            continue
        rank = [w for w in words if w.startswith(b"RANK=")]
        if rank and str(results).encode() in line and int(path.name) != parent:
            found[int(rank[0][5:])] = int(path.name)
    return [found[r] for r in sorted(found)]


@pytest.fixture(scope="module")
def undisturbed(base, tmp_path_factory) -> list:
    results = tmp_path_factory.mktemp("one")
    finish(1, base, results)
    return scores(results)


@pytest.mark.parametrize(
    "victim, number, size", [(1, signal.SIGKILL, 1), (0, signal.SIGKILL, 2), (None, signal.SIGTERM, 1)]
)
def test_a_stopped_run_ends_at_once_and_continues_on_any_number_of_ranks(
    base, tmp_path, undisturbed, victim, number, size
):
    started = subprocess.Popen(
        command(2, base, tmp_path), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    )
    while not scores(tmp_path) and started.poll() is None:
        time.sleep(0.1)
    os.kill(started.pid if victim is None else ranks_of(started.pid, tmp_path)[victim], number)
    began = time.monotonic()
    told = started.communicate(timeout=60)[1]
    assert time.monotonic() - began < 30 and started.returncode
    ours = [line for line in told.splitlines() if line.startswith(("error:", "stopped"))]
    assert len(ours) == 1 and "--resume auto" in ours[0]
    assert not ranks_of(started.pid, tmp_path)
    assert "continuing" in finish(size, base, tmp_path, "--resume", "auto")
    assert scores(tmp_path) == undisturbed and rows(tmp_path)[-1]["status"] == "done"


def test_copies_leave_nothing_behind(base, tmp_path):
    argv = [word for word in command(2, base, tmp_path) if word not in ("--distributed", "ddp")]
    done = subprocess.run(argv, cwd=ROOT, env=environment(), capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode and len(ours) == 1 and "copies of this run" in ours[0]
    assert not rows(tmp_path) and not ranks_of(0, tmp_path)
