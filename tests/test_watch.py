"""Sinks and scripts/watch.py: fed by the lines of the record, never in the way of a run. The packages behind two sinks
are optional: stand-ins with their interface are made here, and the real ones are tried where they are installed."""

import csv
import importlib.util
import json
import os
import struct
import subprocess
import sys
import time
import types
from argparse import Namespace
from pathlib import Path

import pytest

import main
from scripts import watch
from tests.conftest import ROOT, newest_record
from utils import cli
from utils.engine import heartbeat, launch, sinks
from utils.engine.record import RunRecord, config_hash

SGD = [
    "--model",
    "sgd",
    "--dataset",
    "seq-mnist",
    "--lr",
    "0.05",
    "--n_epochs",
    "1",
    "--seed",
    "1",
    "--debug_mode",
    "1",
]
ROWS = [
    {"type": "start", "args": {"model": "sgd", "lr": 0.1, "seed": None}},
    {"type": "task", "task": 0, "scores": {"class_il": [80.0, None]}, "seconds": {"fit": 2.5}, "wall_s": 3.0},
    {"type": "epoch", "task": 1, "epoch": 4, "class_il": [60.0, 50.0]},
    {"type": "warning", "text": "so what"},
    {"type": "task", "task": 1, "scores": {"class_il": [40.0, 90.0]}, "seconds": {"fit": 1.5}, "wall_s": 6.0},
    {"type": "end", "status": "done", "summary": {"class_il_last": 65.0, "ece": None}},
]
TASK_1 = {"class_il": 65.0, "class_il/task 1": 40.0, "class_il/task 2": 90.0, "seconds/fit": 1.5, "wall_s": 6.0}


def args_of(**given) -> Namespace:
    return Namespace(**{"csv": False, "tensorboard": False, "wandb": False} | given)


def feed(folder: Path, **given) -> sinks.Sinks:
    open_ = sinks.Sinks(folder, args_of(**given), ROWS[:3])
    for row in ROWS[3:]:
        open_.row(row)
    open_.close()
    return open_


def test_numbers_of_a_line():
    assert dict(sinks.scalars(ROWS[4])) == TASK_1
    assert dict(sinks.scalars(ROWS[1])) == {
        "class_il": 80.0,
        "class_il/task 1": 80.0,
        "seconds/fit": 2.5,
        "wall_s": 3.0,
    }
    assert dict(sinks.scalars(ROWS[5])) == {"summary/class_il_last": 65.0}
    ahead = {"type": "task", "task": 0, "scores": {"all_names": [10.0, 30.0]}}  # a task that was not trained yet
    assert dict(sinks.scalars(ahead)) == {"all_names": 10.0, "all_names/task 1": 10.0, "all_names/task 2": 30.0}


def test_csv(tmp_path):
    feed(tmp_path, csv=True)
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    of_task_2 = {r["name"]: float(r["value"]) for r in rows if (r["line"], r["task"]) == ("task", "2")}
    assert of_task_2 == TASK_1
    epochs = [r for r in rows if r["line"] == "epoch"]
    assert {r["epoch"] for r in epochs} == {"4"} and {r["task"] for r in epochs} == {"2"}
    assert [(r["line"], r["name"], r["value"]) for r in rows][-1] == ("end", "summary/class_il_last", "65.0")


class FakeWandb(types.ModuleType):
    """wandb as far as it is used: what was sent is kept."""

    def __init__(self, key=None, fails=()):
        super().__init__("wandb")
        self.api, self.sent, self.fails, self.tried = types.SimpleNamespace(api_key=key), [], fails, []
        self.Settings = lambda **how: how
        self.config = self.summary = types.SimpleNamespace(
            update=lambda values, **how: self.sent.append(("update", values))
        )

    def init(self, **how):
        if "init" in self.fails:
            raise ConnectionError("no route\nto host")
        self.sent.append(("init", how))
        return self

    def login(self, prompt=True):
        assert not prompt, "it would ask"
        return self.api.api_key is not None

    def log(self, values, step):
        self.tried.append(step)
        if "log" in self.fails:
            raise ConnectionError("no route\nto host")
        self.sent.append((step, values))

    def finish(self):
        self.sent.append("finish")


def test_wandb_is_offline_without_a_key_and_never_asks(tmp_path, monkeypatch):
    folder = tmp_path / "20260101-000000_abc_1-2"
    monkeypatch.delenv("WANDB_MODE", raising=False)
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.warns(UserWarning, match="stays offline"):
        feed(folder, wandb=True, wandb_project="mine", wandb_name="first", wandb_entity="us")
    (_, how), *sent = fake.sent
    assert (how["mode"], how["id"], how["resume"], how["dir"]) == ("offline", folder.name, "allow", str(folder))
    assert (how["project"], how["name"], how["entity"]) == ("mine", "first", "us")
    assert sent[0] == ("update", {"model": "sgd", "lr": 0.1}) and sent[2] == (2, TASK_1) and sent[-1] == "finish"
    assert sent[-2] == ("update", {"summary/class_il_last": 65.0})
    for key, mode, wanted in (("secret", None, None), (None, "disabled", "disabled"), ("secret", "offline", "offline")):
        fake = FakeWandb(key)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        monkeypatch.setenv("WANDB_MODE", mode) if mode else monkeypatch.delenv("WANDB_MODE", raising=False)
        feed(folder, wandb=True)
        assert fake.sent[0][1]["mode"] == wanted and fake.sent[0][1]["project"] == "mammoth-vl"


@pytest.mark.parametrize("fails", ["init", "log"])
def test_a_sink_that_fails_warns_once_and_hurts_nothing(fails, data, tmp_path, monkeypatch, capfd):
    """Its run has the scores of one without it, and the other sink goes on."""
    common = [*SGD, "--base_path", str(data), "--device", "cpu", "--non_verbose", "1"]
    assert main.main([*common, "--results_path", str(tmp_path / "plain")]) == 0
    fake = FakeWandb("key", [fails])
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: True)
    capfd.readouterr()
    assert main.main([*common, "--results_path", str(tmp_path / "watched"), "--wandb", "1", "--csv", "1"]) == 0
    err = capfd.readouterr().err
    told = "--wandb 1 stopped: ConnectionError: no route to host; the run and its record go on"
    assert fake.tried == ([1] if fails == "log" else []), "a sink that failed gets no further lines"
    assert err.count("stopped") == 1 and f"warning: {told}" in err
    plain, watched = newest_record(tmp_path / "plain"), newest_record(tmp_path / "watched")
    assert [r["text"] for r in watched if r["type"] == "warning"] == [told]
    watched = [r for r in watched if r["type"] != "warning"]
    assert [r.get("scores") for r in watched] == [r.get("scores") for r in plain]
    assert watched[0]["config_hash"] == plain[0]["config_hash"]
    with open(next((tmp_path / "watched").rglob("scores.csv")), newline="") as file:
        last = [row for row in csv.DictReader(file) if row["name"] == "summary/class_il_last"]
    assert float(last[0]["value"]) == plain[-1]["summary"]["class_il_last"]


def test_a_continued_run_has_each_line_once(tmp_path):
    feed(tmp_path, csv=True)
    whole = (tmp_path / "scores.csv").read_text()
    sinks.Sinks(tmp_path, args_of(csv=True), ROWS[:2]).close()  # the record was cut back to its checkpoint
    feed(tmp_path, csv=True)
    assert (tmp_path / "scores.csv").read_text() == whole


def test_flags_of_the_sinks():
    parsed = cli.parse([*SGD, "--wandb_entity", "us", "--wandb_project", "p"])
    assert sinks.chosen(parsed.args) == ["wandb"]
    wrong = cli.parse([*SGD, "--wandb_name", "x", "--csv", "1", "--disable_log", "1"]).args
    assert sinks.problems(wrong) == [
        "--wandb_name needs --wandb 1 (or --wandb_entity with --wandb_project)",
        "--csv 1 shows the record: leave out --disable_log",
    ]
    plain, watched = (
        cli.parse([*SGD, *more]).args for more in ([], ["--csv", "1", "--wandb", "1", "--wandb_name", "x"])
    )
    assert config_hash(launch.fill_in(plain)) == config_hash(launch.fill_in(watched))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_in_one_line(name, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    assert main.main([*SGD, f"--{name}", "1", "--results_path", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: --{name} 1 needs the package {name}: pip install {name}\n"


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="the package tensorboard is not installed")
def test_tensorboard_reads_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # a second start writes all of it again
        feed(tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("class_il")] == [(1, 80.0), (2, 65.0)]
    assert [(e.step, e.value) for e in events.Scalars("epochs of task 2/class_il")] == [(4, 55.0)]
    assert [e.value for e in events.Scalars("summary/class_il_last")] == [65.0]


def log_records(data: bytes):
    """The records of a .wandb file: after 7 bytes, blocks of 32 KiB of pieces (checksum, length, first to last)."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:  # a whole record, or its last piece
            yield whole
            whole = b""


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the package wandb is not installed")
def test_an_offline_folder_of_wandb_is_written(tmp_path, monkeypatch):
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    code = "import pathlib, sys; from tests import test_watch as t; t.feed(pathlib.Path(sys.argv[1]), wandb=True)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)  # it is written at the exit
    (path,) = tmp_path.rglob("*.wandb")
    found = {}
    for data in log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        if items:
            found[items["_step"]] = items
    assert {k: v for k, v in found[2].items() if not k.startswith("_")} == TASK_1


# watching


def record_of(folder: Path, rows: list[dict], **args) -> Path:
    folder.mkdir(parents=True)
    start = {"type": "start", "args": {"model": "er", "dataset": "seq-tiny", "seed": 3} | args}
    (folder / "record.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [start, *rows[1:]]))
    return folder


def test_the_table_of_a_folder(tmp_path, capsys):
    record_of(tmp_path / "d/m/1", ROWS, notes="the whole")
    part = record_of(tmp_path / "d/m/2", ROWS[:2])
    (part / "progress.json").write_text(json.dumps({"task": 1, "tasks": 2, "within": 0.5, "loss": 0.25}))
    lock = RunRecord(part)
    lock.lock()
    record_of(tmp_path / "d/m/3", ROWS[:2])
    old = record_of(tmp_path / "d/m/4", ROWS[:1]) / "record.jsonl"
    os.utime(old, (time.time() - watch.STALE_S - 60,) * 2)
    record_of(tmp_path / "d/m/5", [*ROWS[:2], {"type": "end", "status": "failed", "error": "x", "summary": {}}])
    record_of(tmp_path / "d/m/6", ROWS[:1])
    (tmp_path / "d/m/6/record.jsonl").write_text("nonsense\n")
    seen = {run.state: run for run in watch.Watch(tmp_path).runs()}
    assert list(seen) == ["running", "stale", "failed", "interrupted", "broken", "done"]
    running = seen["running"]
    assert (running.progress, running.task, running.score, running.loss) == (0.75, "2/2", 80.0, 0.25)
    assert running.left == 3.0 * 0.5 and running.name == "er seq-tiny 3"
    assert (seen["done"].progress, seen["done"].score, seen["done"].name) == (1.0, 65.0, "the whole seq-tiny 3")
    assert (seen["interrupted"].progress, seen["interrupted"].task) == (0.5, "1/2") and seen["interrupted"].left is None
    lock.close()
    assert watch.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "#########... " + " 75%" in out and "1 stale, 1 failed, 2 interrupted, 1 broken, 1 done" in out
    assert "not shown" in watch.page(tmp_path, watch.Watch(tmp_path).runs(), lines=6)
    assert watch.main([str(tmp_path / "none")]) == 2
    assert watch.page(tmp_path, []) == f"no record under {tmp_path} yet"


def test_only_what_changed_is_read_again(tmp_path, monkeypatch):
    paths = [record_of(tmp_path / name, ROWS[:2]) / "record.jsonl" for name in "ab"]
    seen, real = [], watch.read_record
    monkeypatch.setattr(watch, "read_record", lambda path: seen.append(path) or real(path))
    looking = watch.Watch(tmp_path)
    looking.runs(), looking.runs()
    assert sorted(seen) == paths
    with open(paths[0], "a") as file:
        file.write(json.dumps(ROWS[4]) + "\n")
    assert {run.score for run in looking.runs()} == {80.0, 65.0} and len(seen) == 3


def test_a_run_says_how_far_it_is(data, tmp_path, monkeypatch):
    beats = []
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.0)
    real = heartbeat.Heartbeat.beat
    monkeypatch.setattr(heartbeat.Heartbeat, "beat", lambda self, *at: beats.append(at) or real(self, *at))
    argv = [*SGD[:-2], "--batch_size", "10", "--base_path", str(data), "--device", "cpu", "--non_verbose", "1"]
    assert main.main([*argv, "--results_path", str(tmp_path), "--stop_after", "1"]) == 0
    assert {(task, tasks) for task, tasks, _, _ in beats} == {(0, 5), (1, 5)}
    within = [w for task, _, w, _ in beats if task == 1]
    assert within == sorted(within) and 0 < within[0] < within[-1] <= 1 and all(loss > 0 for *_, loss in beats)
    (path,) = tmp_path.rglob(heartbeat.NAME)
    assert json.loads(path.read_text())["task"] == 1
    assert not heartbeat.Heartbeat(None).due()
