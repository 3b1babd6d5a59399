"""scripts/sweep.py: grids, one run per configuration, crashes, locks and signals. main.py is a stub that writes a
record at once, except where the real parser is what is tested."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scripts import sweep
from scripts.sweeps import gpus, grid, ledger, locks, plan, pool, state
from tests.conftest import ROOT
from utils.errors import UserError

# a main.py that finishes at once, in the folder that the real one uses; flags of its own say how it fails
STUB = """
import fcntl, json, os, pathlib, signal, sys, time
argv = sys.argv[1:]
value = {a[2:]: b for a, b in zip(argv, argv[1:]) if a.startswith("--")}
name = "-".join(value.get(k, "") for k in ("model", "dataset", "seed", "notes"))
def note(word):
    with open(os.environ["STARTED"], "a") as file:
        file.write(f"{name} {word} {os.environ['OMP_NUM_THREADS']}\\n")
parent = pathlib.Path(value["results_path"]) / value["dataset"] / value["model"]
folder = parent / f"20260101_{name[:12]}_1"
def row(**what):
    with open(folder / "record.jsonl", "a") as file:
        file.write(json.dumps(what) + "\\n")
resumed = folder.exists()
note("resumed" if resumed else "started")
how = value.get("notes", "")
if how == "refused":
    sys.exit(print("error: not like this", file=sys.stderr) or 2)
while how == "imports" and not os.path.exists("go"):
    time.sleep(0.02)
folder.mkdir(parents=True, exist_ok=True)
lock = open(folder / "lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
if not resumed:
    row(type="start", config_hash=name, args={"model": value["model"], "dataset": value["dataset"]})
if how == "broken" or (how == "crashes" and not resumed):
    os.kill(os.getpid(), signal.SIGKILL)
if how.startswith("sleeps") and not resumed:
    def stop(number, frame):
        time.sleep(0.3)
        note("saved")
        row(type="end", status="interrupted", summary={})
        sys.exit(128 + number)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if how == "sleeps-deaf" else stop)
    note("sleeping")
    time.sleep(float(value.get("lr", 60)))
if how == "slow":
    time.sleep(0.3)
note("warm")
row(type="task", task=0, scores={"class_il": [50.0]})
if how == "slow":
    time.sleep(0.2)
row(type="end", status="done", summary={"class_il_last": 41.5, "wall_s": 3.0})
note("done")
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Sweeps in a folder with the stub as main.py; returns (run, what was started)."""
    (tmp_path / "main.py").write_text(STUB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STARTED", str(tmp_path / "started"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(pool, "ROOT", tmp_path)
    monkeypatch.setattr(pool, "TICK_S", 0.05)
    monkeypatch.setattr(gpus, "free_memory", dict)

    def config(argv):
        value = dict(grid.flags_of(argv))
        name = "-".join(value.get(k, "") for k in ("model", "dataset", "seed", "notes"))
        return plan.Config(name, value["dataset"], value["model"])

    monkeypatch.setattr(plan, "parsed", config)

    def started(word: str = "") -> list[str]:
        path = tmp_path / "started"
        return [line for line in path.read_text().splitlines() if word in line] if path.exists() else []

    return started


def write(*commands: str) -> str:
    Path("runs.txt").write_text("".join(f"python main.py {c}\n" for c in commands))
    return "runs.txt"


# what is asked for is checked by main.py's own parser


def test_all_wrong_commands_are_told_before_anything_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pool.Pool, "start", lambda *args: pytest.fail("a run was started"))
    name = write(
        "--model ncm --dataset seq-tiny --seed 0",
        "--model ncm --dataset seq-tiny --seed 0 --notes again",
        "--model er --dataset seq-tiny --lr 0.1 --bufer_size 5",
        "--model nope --dataset seq-tiny",
        "--list models",
        "--model ncm --dataset seq-tiny --disable_log 1",
        "--model sgd --dataset seq-tiny --lr 0.1 --fitting_mode iters",
    )
    assert sweep.main([name]) == 2
    told = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: line ") for line in told)
    assert {line.split(":")[1] for line in told} == {" line 3", " line 4", " line 5", " line 6", " line 7"}
    assert sum("line 3" in line for line in told) == 2 and not (tmp_path / "runs" / plan.HOME).exists()
    assert sweep.main([name, "--only", "seed 0", "--dry_run"]) == 0
    out, err = capsys.readouterr()
    assert out == (
        "python main.py --model ncm --dataset seq-tiny --seed 0 --resume auto --non_verbose 1 --results_path runs\n"
    )
    assert "1 configurations, 0 finished before; 1 lines repeat another one (line 2, ...)" in err


def test_a_remembered_configuration_is_that_of_the_parser_and_of_the_sources(tmp_path, monkeypatch):
    argv = plan.completed(["--model", "ncm", "--dataset", "seq-tiny", "--seed", "0"], tmp_path)
    known = plan.Known(tmp_path)
    found = known.config_of(argv)
    known.keep()
    assert (found.dataset, found.model, len(found.sha256)) == ("seq-tiny", "ncm", 64)
    with monkeypatch.context() as changed:
        changed.setattr(plan, "parsed", lambda argv: pytest.fail("it was parsed again"))
        assert plan.Known(tmp_path).config_of(argv) == found
    with monkeypatch.context() as changed:
        changed.setattr(plan, "sources", lambda: "other sources")
        changed.setattr(plan, "parsed", lambda argv: plan.Config("new", "d", "m"))
        assert plan.Known(tmp_path).config_of(argv).sha256 == "new"
    (tmp_path / plan.HOME / "known.json").write_text('{"sources": 5}')
    assert plan.Known(tmp_path).lines == {}


def test_sources_change_with_any_file_that_decides_what_a_flag_means(tmp_path, monkeypatch):
    for name in ("main.py", "utils/flags.py", "models/config/er.yaml", "datasets/protocols/orders/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(plan, "ROOT", tmp_path)
    seen = [plan.sources.__wrapped__()]
    for name in ("main.py", "utils/flags.py", "models/config/er.yaml", "datasets/protocols/orders/x.txt"):
        (tmp_path / name).write_text("2")
        seen.append(plan.sources.__wrapped__())
    assert len(set(seen)) == 5


# running


def test_each_configuration_runs_once_and_crashes_continue(stub, capsys):
    name = write(
        "--model a --dataset d",
        "--model a --dataset d --lr 0.1",  # the stub's hash does not see it: the same configuration
        "--model b --dataset d --notes crashes",
        "--model c --dataset d --notes broken",
        "--model d --dataset d --notes refused",
    )
    assert sweep.main([name, "--jobs", "2"]) == 1
    out = capsys.readouterr().out
    assert "4 configurations, 0 finished before; 1 lines repeat" in out
    assert (
        "line 3: crashed (-9)" in out and "line 4: failed (-9)" in out and "line 5: failed (2): error: not like" in out
    )
    assert sorted(line.split()[0] for line in stub("started")) == [
        "a-d--",
        "b-d--crashes",
        "c-d--broken",
        "d-d--refused",
    ]
    assert sorted(line.split()[0] for line in stub("resumed")) == ["b-d--crashes", "c-d--broken"]
    assert all(line.split()[2] == str(max(1, pool.CORES // 2)) for line in stub())
    assert sorted(row["code"] for row in ledger.read(Path("runs"))) == [-9, -9, -9, 0, 0, 2]
    before = len(stub())
    assert sweep.main(["status", name]) == 1
    assert "2 done, 1 interrupted, 1 waiting" in capsys.readouterr().out
    assert sweep.main([name, "--only", "model [ab] "]) == 0 and len(stub()) == before
    assert "41.50  class_il_last" in capsys.readouterr().out
    assert sweep.main(["status", name, "--only", "model [ab] "]) == 0
    assert sweep.main([name, "--retries", "0", "--only", "model d"]) == 1 and len(stub()) == before + 1


def test_a_changed_record_is_not_a_finished_one(stub):
    name = write("--model a --dataset d")
    assert sweep.main([name]) == 0
    (record,) = Path("runs").rglob("record.jsonl")
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    job = plan.jobs_of(grid.read(name).lines, Path("runs"))[0][0]

    def finished(rows, tail=""):
        record.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
        return state.Records().finished(job)

    assert finished(rows) == {"class_il_last": 41.5, "wall_s": 3.0} == finished(rows, '{"type": "sta')
    rows[1]["scores"]["class_il"] = [1.0] * 30_000  # a line longer than what is read at a time
    assert finished(rows) and finished([*rows[:-1], rows[1], rows[-1]])
    assert (
        finished(rows[:-1]) is None
        and finished([]) is None
        and finished([rows[0] | {"config_hash": "x"}, rows[-1]]) is None
    )
    assert finished([*rows[:-1], rows[-1] | {"status": "failed"}]) is None
    assert finished([*rows[:-1], rows[-1] | {"summary": {}}]) is None


def until(what, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def sweep_process(name: str, *more: str, **how) -> subprocess.Popen:
    """A sweep with the stub in a process of its own."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from scripts import sweep
from scripts.sweeps import gpus, grid, plan, pool
pool.ROOT, gpus.free_memory, pool.TICK_S = Path("."), dict, 0.05
def config(argv):
    value = dict(grid.flags_of(argv))
    name = "-".join(value.get(k, "") for k in ("model", "dataset", "seed", "notes"))
    return plan.Config(name, value["dataset"], value["model"])
plan.parsed = config
sys.exit(sweep.main(sys.argv[1:]))
"""
    return subprocess.Popen([sys.executable, "-c", code, name, *more], stdout=subprocess.PIPE, text=True, **how)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_runs_save_and_the_next_call_continues(number, stub, capsys):
    name = write(
        "--model a --dataset d --notes sleeps", "--model b --dataset e --notes sleeps", "--model c --dataset d"
    )
    process = sweep_process(name, "--jobs", "2")
    until(lambda: len(stub("sleeping")) == 2)
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert len(stub("saved")) == 2 and not stub("c-d") and out.count("stopped; the next call continues it") == 2
    assert sweep.main([name, "--jobs", "2"]) == 0
    assert len(stub("resumed")) == 2 and len(stub("done")) == 3


def test_the_second_signal_ends_the_runs(stub):
    process = sweep_process(write("--model a --dataset d --notes sleeps-deaf"))
    until(lambda: stub("sleeping"))
    process.send_signal(signal.SIGINT)
    assert "once more ends them" in process.stdout.readline() + process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130 and not stub("saved") and not stub("done")


def test_a_second_sweep_waits_and_never_repeats(stub, capsys):
    """Also after the launcher was killed: the run holds its lock."""
    name = write("--model a --dataset d --notes imports", "--model b --dataset e")
    first = sweep_process(name)
    until(lambda: stub("started"))  # it does not have a record yet
    first.kill()
    first.communicate()
    second = sweep_process(name, "--jobs", "2")
    while "line 1: another process runs it; waiting" not in second.stdout.readline():
        assert second.poll() is None and len(stub("a-d--imports started")) == 1
    Path("go").touch()
    out, _ = second.communicate(timeout=30)
    assert second.returncode == 0 and "line 1: finished by another process" in out
    assert len(stub("started")) == len(stub("done")) == 2 and not stub("resumed")


def test_two_sweeps_share_a_grid(stub):
    name = write(*(f"--model m{i} --dataset d{i} --notes slow" for i in range(6)))
    both = [sweep_process(name, "--jobs", "2") for _ in range(2)]
    outs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    assert len(stub("started")) == len(stub("done")) == 6 and not stub("resumed")


def test_a_refusal_elsewhere_is_not_repeated(stub):
    job = plan.jobs_of(grid.read(write("--model a --dataset d --notes refused")).lines, Path("runs"))[0][0]
    lock = locks.take(job)
    told: list[str] = []
    own = pool.Pool([job], 1, told=told.append)

    def elsewhere():
        until(lambda: told)
        ledger.add(job.results, {"config": job.config, "cpu_s": 1.0, "code": 2, "error": "error: no images"})
        locks.release(lock)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert pool.run(own) == 1
    thread.join()
    assert not stub() and own.tally.failed == {job.key: "error: no images"}


def test_the_first_run_of_a_data_set_warms_it(stub):
    name = write(*(f"--model m{i} --dataset {d} --notes slow" for i in range(2) for d in ("d", "e")))
    assert sweep.main([name, "--jobs", "4"]) == 0
    order = [" ".join(line.split()[:2]) for line in stub()]
    for d in ("d", "e"):
        assert order.index(f"m0-{d}--slow started") < order.index(f"m0-{d}--slow warm")
        assert order.index(f"m0-{d}--slow warm") < order.index(f"m1-{d}--slow started")


def test_the_disk_is_full(stub, capsys, monkeypatch):
    name = write("--model a --dataset d")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(locks.fcntl, "flock", full)
    assert sweep.main([name]) == 2
    assert "error: no space left for runs/.sweep/locks/" in capsys.readouterr().err


def test_gpus_are_dealt_by_free_memory(monkeypatch):
    free = {"0": 100, "1": 900, "2": 500}
    monkeypatch.setattr(gpus, "free_memory", lambda: free)
    dealt: list = []
    for _ in range(4):
        dealt.append(gpus.chosen(None).deal(["--model", "er"], dealt))
    assert dealt == ["1", "2", "0", "1"]
    assert gpus.chosen("0,2").deal([], []) == "2"
    assert gpus.chosen(None).deal(["--device", "cpu"], []) is gpus.chosen(None).deal(["--device=cuda:1"], []) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert gpus.chosen(None).names == ["2"]
    with pytest.raises(UserError, match="there is no GPU 7 here; there are 0, 1, 2"):
        gpus.chosen("1,7")


def test_a_run_gets_its_gpu(stub, monkeypatch):
    Path("main.py").write_text(STUB.replace("os.environ['OMP_NUM_THREADS']", "os.environ['CUDA_VISIBLE_DEVICES']"))
    monkeypatch.setattr(gpus, "free_memory", lambda: {"0": 1, "3": 2})
    assert sweep.main([write("--model a --dataset d --notes slow", "--model b --dataset e --notes slow")]) == 0
    assert {line.split()[2] for line in stub("started")} == {"0", "3"}


def test_the_live_line_counts_and_estimates(stub):
    from scripts.sweeps import live

    own = pool.Pool(
        plan.jobs_of(grid.read(write("--model a --dataset d", "--model b --dataset d")).lines, Path("runs"))[0], 2
    )
    assert live.counts(own) == "0 done, 0 running, 0 failed, 2 waiting; time left -"
    own.tally.seconds += [100.0, 140.0]
    assert live.counts(own).endswith("time left 2 min")
    assert [live.duration(s) for s in (-1.0, 89.0, 90.0, 7200.0)] == ["0 s", "89 s", "2 min", "2.0 h"]


def test_all_libraries_get_the_same_threads(monkeypatch):
    """MKL_NUM_THREADS wins over OMP_NUM_THREADS in torch."""
    monkeypatch.setattr(pool, "CORES", 12)
    for name in pool.THREADS:
        monkeypatch.delenv(name, raising=False)
    assert {pool.Pool([], 4).environment[name] for name in pool.THREADS} == {"3"}
    assert {pool.Pool([], 16).environment[name] for name in pool.THREADS} == {"1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert {pool.Pool([], 4).environment[name] for name in pool.THREADS} == {"7"}
    assert {pool.Pool([], 4, threads=2).environment[name] for name in pool.THREADS} == {"2"}
