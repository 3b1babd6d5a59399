"""scripts/paper_table.sh from end to end, on the picture world."""

import os
import subprocess

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_table_of_the_picture_world(tmp_path):
    """Two methods; a second call repeats nothing; published-style columns, the protocol's own weighting first."""
    environment = os.environ | {"RESULTS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    command = ["bash", "scripts/paper_table.sh", "tiny", "seq-tiny", "clip ncm", "0", str(tmp_path), "--device", "cpu"]
    for repeated in (False, True):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert (done.stdout.count("already finished") == 2) == repeated
    lines = done.stdout.splitlines()
    (head,) = [line for line in lines if line.startswith("method ")]
    assert head.index("over images") < head.index("class-il, final average") < head.index("probe tiny")
    assert sum(line.startswith(("clip --protocol", "ncm --protocol")) for line in lines) == 2
    assert any(line.startswith("seq-tiny: protocol tiny/bhalf") for line in lines)


def test_a_table_without_a_protocol_is_refused():
    done = subprocess.run(["bash", "scripts/paper_table.sh"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "give a protocol" in done.stderr
