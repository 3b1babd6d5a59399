"""The table of a protocol from end to end, on the picture world."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_table_of_the_picture_world(tmp_path):
    """Two methods; a second call repeats nothing; published-style columns, the protocol's own weighting first."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    results = str(tmp_path / "runs")
    sweep = [
        "scripts/sweep.py",
        "protocol:tiny",
        "--seeds",
        "0",
        "--results_path",
        results,
        "--only=--model (clip|ncm) ",
    ]
    sweep += ["--", "--base_path", str(tmp_path), "--device", "cpu"]
    for repeated in (False, True):
        done = subprocess.run([sys.executable, *sweep], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert ("2 finished before" in done.stdout) == repeated
    report = [sys.executable, "scripts/report.py", results]
    lines = subprocess.run(report, cwd=ROOT, env=environment, capture_output=True, text=True).stdout.splitlines()
    (head,) = [line for line in lines if line.startswith("method ")]
    assert head.index("over images") < head.index("class-il, final average") < head.index("probe tiny")
    assert sum(line.startswith(("clip --protocol", "ncm --protocol")) for line in lines) == 2
    assert any(line.startswith("seq-tiny: protocol tiny/bhalf") for line in lines)
