"""Ten kill -9 at random times on real processes; opt in with `-m slow`."""

import random
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, comparable, newest_record

COMMANDS = {"er": ["--model", "er", "--buffer_size", "60"], "icarl": ["--model", "icarl", "--buffer_size", "60"]}
COMMON = [
    "--dataset",
    "seq-mnist",
    "--n_epochs",
    "60",
    "--batch_size",
    "8",
    "--seed",
    "5",
    "--lr",
    "0.02",
    "--resume",
    "auto",
    "--autosave",
    "0.02",
    "--non_verbose",
    "1",
    "--device",
    "cpu",
]


def start(name: str, data, results) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "main.py", *COMMANDS[name], *COMMON, "--base_path", str(data), "--results_path", str(results)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_ten_kills(name, data, tmp_path):
    whole = start(name, data, tmp_path / "whole")
    began = time.monotonic()
    while not newest_record(tmp_path / "whole"):
        time.sleep(0.05)
    ready = time.monotonic() - began
    assert whole.wait() == 0
    length = time.monotonic() - began - ready
    rng, kills = random.Random(name), 0
    while kills < 10:
        process = start(name, data, tmp_path / "killed")
        time.sleep(ready + rng.uniform(0.01, 0.08) * length)
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
    assert kills == 10, "the run ended before it could be killed often enough: lengthen it"
    assert start(name, data, tmp_path / "killed").wait() == 0
    assert len(list((tmp_path / "killed").glob("*/*/*"))) == 1
    ends = [
        [comparable(r) for r in newest_record(tmp_path / p) if r["type"] in {"task", "end"}]
        for p in ("whole", "killed")
    ]
    assert ends[0] == ends[1]
    print(f"{name}: {kills} kills")
