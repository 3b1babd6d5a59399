"""A real Ray of two nodes on this host: one is lost while its run has a checkpoint, and the run continues on the other.
`bash scripts/test.sh ray`; needs root (a network namespace of its own) and `pip install ray`."""

import importlib.util
import time

import pytest

from scripts import sweep
from tests import processes
from tests.conftest import ROOT
from tests.test_sweep_slurm import GRID, scores

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the package ray is not installed"),
]


def test_a_lost_node_changes_no_number(tmp_path, data, monkeypatch, capsys):
    import threading

    from ray.cluster_utils import Cluster

    monkeypatch.chdir(tmp_path)
    text = GRID.replace("{data}", str(data)).replace("--n_epochs 400", "--n_epochs 200").replace("seeds: 3", "seeds: 2")
    (tmp_path / "slow.yaml").write_text(text)
    undisturbed, results = tmp_path / "local", tmp_path / "ray"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert sweep.main(["slow.yaml", "--results_path", str(undisturbed)]) == 0
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "240")  # 30 s are not enough on a busy machine
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default 15: beside other work the runs would hardly move
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    lost: list[str] = []

    def lose_a_node(node) -> None:
        raylet = node.all_processes["raylet"][0].process.pid
        end = time.monotonic() + 1200
        while time.monotonic() < end and not lost:
            lines = processes.commands(processes.family([raylet]))
            runs = [line for line in lines.values() if f" {ROOT / 'main.py'} " in line and "one.sh" not in line]
            if runs and len(list(results.rglob("auto.safetensors"))) >= 2:
                processes.kill(processes.family([raylet]))
                lost.extend(runs)
            time.sleep(0.2)

    try:
        thread = threading.Thread(target=lose_a_node, args=(cluster.add_node(num_cpus=1),))
        thread.start()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        assert sweep.main(["slow.yaml", "--results_path", str(results), "--on", "ray"]) == 0
        thread.join()
    finally:
        cluster.shutdown()
    assert len(lost) == 1, "no run was on the node that was lost"
    logs = [path.read_text() for path in (results / ".sweep" / "logs").iterdir()]
    assert sum("continuing" in log for log in logs) == 1
    done = scores(results)
    assert done == scores(undisturbed) and done.keys() == {0, 1}
