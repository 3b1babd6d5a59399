"""Sweeps on Slurm and Ray: the scripts that are submitted and what they do, with stand-ins for sbatch and scontrol."""

import os
import shlex
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from scripts import sweep
from scripts.sweeps import on_ray, on_slurm, pool
from tests.test_sweep import STUB, stub, until, write  # noqa: F401

SBATCH = """#!/usr/bin/env bash
printf '%s\\n' "$@" > sbatch.args
[[ -z ${NO_MUNGE:-} ]] || { echo "sbatch: error: Munge encode failed" >&2; exit 1; }
echo "77;cluster"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$*" >> scontrol.calls
[[ $1 != show ]] || echo "JobId=78 JobState=${STATE:-RUNNING} Reason=None"
"""


@pytest.fixture
def cluster(stub, tmp_path, monkeypatch):  # noqa: F811
    """sbatch and scontrol that write down how they were called."""
    for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(on_slurm, "ROOT", tmp_path)
    return stub


def task(number: int, **more: str) -> subprocess.Popen:
    """A task of the array that was submitted last, as Slurm starts it."""
    script = Path("sbatch.args").read_text().split()[-1]
    own = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(number), "SLURM_CPUS_PER_TASK": "3"}
    return subprocess.Popen(["bash", script], env=os.environ | own | more, stderr=subprocess.PIPE, text=True, cwd="/")


def test_the_script_of_an_array(cluster, capsys):
    name = write("--model a --dataset d --notes 'it is'", "--model b --dataset d", "--model c --dataset d")
    assert sweep.main([name, "--only", "model c"]) == 0
    capsys.readouterr()
    options = ["--partition", "gpu long", "--time", "4:00:00", "--gres", "gpu:1", "--sbatch", "--mem=8G --qos=low"]
    assert sweep.main([name, "--on", "slurm", "--jobs", "5", *options]) == 0
    assert "2 runs are queued as array 77" in capsys.readouterr().out
    script = Path(Path("sbatch.args").read_text().split()[-1])
    lines = script.read_text().splitlines()
    assert [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")] == [
        f"--job-name=sweep-{script.parent.name}",
        "--array=1-2%5",
        "--requeue",
        "--signal=B:TERM@60",
        "--open-mode=append",
        f"--output={script.parent}/%a.out",
        "--partition='gpu long'",
        "--time=4:00:00",
        "--gres=gpu:1",
        "--mem=8G",
        "--qos=low",
    ]
    commands = [shlex.split(line) for line in (script.parent / "commands").read_text().splitlines()]
    here = Path.cwd()
    assert commands[0][0] == str(here) and commands[0][3:5] == [sys.executable, str(here / "main.py")]
    assert commands[0][5:11] == ["--model", "a", "--dataset", "d", "--notes", "it is"]
    assert task(2).wait(30) == 0 and task(1).wait(30) == 0
    assert [[line.split()[0], line.split()[-1]] for line in cluster("done")] == [["c-d--", str(pool.CORES)]] + [
        [key, "3"] for key in ("b-d--", "a-d--it")
    ]
    assert not Path("scontrol.calls").exists()
    assert sweep.main(["status", name]) == 0


@pytest.mark.parametrize("state, requeued", [("RUNNING", True), ("CANCELLED", False)])
def test_term_saves_and_queues_again(state, requeued, cluster):
    name = write("--model a --dataset d --notes sleeps")
    assert sweep.main([name, "--on", "slurm"]) == 0
    first = task(1, STATE=state)
    until(lambda: cluster("sleeping"))
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == (0 if requeued else 143)
    assert ("requeue 77_1" in Path("scontrol.calls").read_text()) == requeued
    assert len(cluster("saved")) == 1 and task(1).wait(30) == 0
    assert len(cluster("resumed")) == len(cluster("done")) == 1


def test_a_task_waits_for_whoever_runs_it_and_tells_how_it_failed(cluster):
    name = write("--model a --dataset d --notes sleeps --lr 1.5", "--model b --dataset d --notes refused")
    assert sweep.main([name, "--on", "slurm"]) == 0
    first = task(1)
    until(lambda: cluster("sleeping"))
    second = task(1)
    time.sleep(0.5)
    assert len(cluster("started")) == 1 and second.poll() is None
    second.send_signal(signal.SIGTERM)  # while it waits
    assert (second.wait(30), first.wait(30)) == (0, 0) and "requeue" in Path("scontrol.calls").read_text()
    assert len(cluster("started")) == len(cluster("done")) == 1
    failed = task(2)
    assert failed.communicate(timeout=30)[1] == "error: not like this\n" and failed.returncode == 2


def test_bad_clusters(cluster, capsys, monkeypatch, tmp_path):
    name = write("--model a --dataset d")
    assert sweep.main([name, "--partition", "gpu"]) == 2
    assert "error: --partition needs --on slurm" in capsys.readouterr().err
    assert sweep.main([name, "--on", "slurm", "--gpus", "0"]) == 2
    assert "error: --gpus needs --on local" in capsys.readouterr().err
    with monkeypatch.context() as changed:
        changed.setenv("NO_MUNGE", "1")
        assert sweep.main([name, "--on", "slurm"]) == 2
    assert "sbatch: error: Munge encode failed" in capsys.readouterr().err
    assert sweep.main([name, "--on", "slurm"]) == 0
    script = Path(Path("sbatch.args").read_text().split()[-1])
    (script.parent / "commands").rename(tmp_path / "commands")
    lost = task(1)
    assert "use a folder that all nodes share" in lost.communicate(timeout=30)[1] and lost.returncode == 2
    monkeypatch.setattr(on_slurm.shutil, "which", lambda name: None)
    assert sweep.main([name, "--on", "slurm"]) == 2
    assert "--on slurm needs Slurm's sbatch" in capsys.readouterr().err


# Ray


class FakeRay(types.ModuleType):
    """ray as far as it is used: a task runs when it is waited for."""

    def __init__(self, there=True, resources=None):
        super().__init__("ray")
        self.there, self.resources, self.asked = there, resources or {"CPU": 4.0}, []
        self.cluster_resources = lambda: self.resources
        self.shutdown = lambda: None

    def init(self, **how):
        if not self.there:
            raise ConnectionError("could not find any running Ray instance")

    def remote(self, **how):
        def options(function, **needs):
            self.asked.append(needs)
            return types.SimpleNamespace(remote=lambda *given: (len(self.asked), function, given))

        return lambda function: types.SimpleNamespace(options=lambda **needs: options(function, **needs))

    def wait(self, references, timeout):
        return references[:1], references[1:]

    def get(self, reference):
        _, function, given = reference
        return function(*given)


@pytest.fixture
def ray(cluster, monkeypatch):
    def made(**how):
        fake = FakeRay(**how)
        monkeypatch.setitem(sys.modules, "ray", fake)
        monkeypatch.setattr(on_ray.importlib.util, "find_spec", lambda name: fake)
        return fake

    return made


def test_tasks_of_ray(ray, cluster, capsys, monkeypatch):
    fake = ray()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # a worker of Ray sets it
    name = write(
        "--model a --dataset d --device cpu",
        "--model b --dataset d --notes crashes",
        "--model c --dataset d --notes refused",
    )
    assert sweep.main([name, "--on", "ray", "--num_cpus", "2"]) == 1
    out = capsys.readouterr().out
    assert "line 2: crashed (137)" in out and "line 3: failed (2): error: not like this" in out
    assert [line.split()[:2] for line in cluster("")] == [
        ["a-d--", "started"],
        ["a-d--", "warm"],
        ["a-d--", "done"],
        ["b-d--crashes", "started"],
        ["c-d--refused", "started"],
        ["b-d--crashes", "resumed"],
        ["b-d--crashes", "warm"],
        ["b-d--crashes", "done"],
    ]
    assert fake.asked == [{"num_cpus": 2.0, "num_gpus": 0.0}] * 4
    fake = ray(resources={"CPU": 1.0, "GPU": 2.0})
    assert sweep.main([name, "--on", "ray", "--only", "model c", "--num_gpus", "0.5"]) == 1
    assert fake.asked == [{"num_cpus": 1.0, "num_gpus": 0.5}]
    assert sweep.main([name, "--on", "ray", "--only", "model c"]) == 1 and fake.asked[-1]["num_gpus"] == 1.0


def test_bad_rays(ray, cluster, capsys, monkeypatch):
    name = write("--model a --dataset d")
    ray(resources={"CPU": 1.0})
    assert sweep.main([name, "--on", "ray", "--num_gpus", "1"]) == 2
    assert "a run needs 1 GPUs; the Ray cluster has 0 in all" in capsys.readouterr().err
    ray(there=False)
    assert sweep.main([name, "--on", "ray"]) == 2
    assert "no Ray cluster (could not find any running Ray instance): start one" in capsys.readouterr().err
    monkeypatch.setattr(on_ray.importlib.util, "find_spec", lambda name: None)
    assert sweep.main([name, "--on", "ray"]) == 2
    assert capsys.readouterr().err == "error: --on ray needs the package ray: pip install ray\n"
    assert not cluster("")
