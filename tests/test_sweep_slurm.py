"""A real Slurm of two nodes on this host: an array is preempted, a node is lost, and the numbers are those of a local
sweep. `bash scripts/test.sh slurm`; needs root and `apt-get install slurm-wlm munge`."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import sweep
from tests import slurm_bed
from tests.conftest import ROOT, comparable

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(slurm_bed.missing()), reason=f"no Slurm here: {slurm_bed.missing()}"),
]
GRID = """
flags: >-
  --model er --dataset seq-mnist --buffer_size 20 --lr 0.05 --n_epochs 400 --autosave 0.2 --device cpu
  --base_path {data}
seeds: 3
"""


def scores(results: Path) -> dict[int, list[dict]]:
    """Seed -> the scores of its only record, without clock and memory readings."""
    found: dict[int, list[dict]] = {}
    for path in results.rglob("record.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        seed = rows[0]["args"]["seed"]
        assert seed not in found, f"seed {seed} has two records"
        found[seed] = [comparable(row) for row in rows if row["type"] in {"task", "end"}]
    return found


def queue() -> dict[str, tuple[str, str]]:
    """Task of the array -> its state and node."""
    lines = slurm_bed.told("squeue", "-h", "-r", "-p", "low", "-o", "%K|%T|%N").splitlines()
    return {task: (state, node) for task, state, node in (line.split("|") for line in lines)}


def wait_for(what, seconds: float, results: Path):
    end = time.monotonic() + seconds
    while not (found := what()):
        logs = "\n".join(path.read_text()[-300:] for path in (results / ".sweep").rglob("*.out"))
        assert time.monotonic() < end, f"it never came\n{queue()}\n{logs}"
        for line in slurm_bed.told("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i %r").splitlines():
            if line.endswith("BeginTime"):  # a task that was queued again waits two minutes: not here
                slurm_bed.told("scontrol", "update", f"JobId={line.split()[0]}", "StartTime=now")
        time.sleep(0.5)
    return found


def log_of(task: str, results: Path) -> Path:
    """The log of a task: the third word of its line in the file of commands."""
    (commands,) = results.rglob("commands")
    return Path(commands.read_text().splitlines()[int(task) - 1].split()[2])


def test_preemption_and_a_lost_node_change_no_number(tmp_path, data, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow.yaml").write_text(GRID.replace("{data}", str(data)))
    undisturbed, results = tmp_path / "local", tmp_path / "slurm"
    assert sweep.main(["slow.yaml", "--results_path", str(undisturbed)]) == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = ["slow.yaml", "--results_path", str(results)]
    with slurm_bed.bed(tmp_path / "bed") as daemons:
        assert sweep.main([*arguments, "--on", "slurm", "--partition", "low"]) == 0

        def saved() -> dict[str, str]:
            """Node -> the task that runs there and has a checkpoint."""
            on = {node: task for task, (state, node) in queue().items() if state == "RUNNING"}
            begun = {n: t for n, t in on.items() if (log := log_of(t, results)).exists() and log.stat().st_size}
            return on if len(begun) == len(on) == len(list(results.rglob("auto.safetensors"))) == 2 else {}

        on = wait_for(saved, 300, results)
        subprocess.run(["sbatch", "-p", "high", "-w", "n1", "--wrap", "sleep 2", "-o", "/dev/null"], check=True)
        wait_for(lambda: "stopped by signal 15" in log_of(on["n1"], results).read_text(), 60, results)
        killed = slurm_bed.kill_node("n2", daemons["n2"])
        assert len(killed) > 2, "the daemon alone: no task ran on the node"
        wait_for(lambda: "continuing" in log_of(on["n1"], results).read_text(), 300, results)
        wait_for(lambda: "continuing" in log_of(on["n2"], results).read_text(), 300, results)
        wait_for(lambda: not queue(), 600, results)
        capsys.readouterr()
        assert sweep.main(["status", *arguments]) == 0
    done = scores(results)
    assert done == scores(undisturbed) and done.keys() == {0, 1, 2}
    again = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "sweep.py"), *arguments, "--on", "slurm"],
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0 and "3 finished before" in again.stdout
