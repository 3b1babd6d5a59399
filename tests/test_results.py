import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.engine import record as results
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CONFIG = {"model": "er", "dataset": "seq-mnist", "lr": 0.1, "seed": 0, "device": "cpu", "notes": None}


def new_run(tmp_path, **changes):
    return results.open_run(tmp_path, "seq-mnist", "er", CONFIG | changes)


def test_lines_round_trip_and_are_plain_json(tmp_path):
    run = new_run(tmp_path)
    run.start({"args": CONFIG, "device": torch.device("cpu"), "path": Path("x"), "seen": {2, 1}})
    run.task({"row": np.array([50.0, np.nan]), "loss": float("inf"), "n": np.int64(3), "t": torch.tensor([1, 2])})
    run.warning('quotes " and\nnew lines stay on one line')
    run.end({"status": "done", "summary": {"class_il_last": np.float64(12.5)}})
    rows = [json.loads(line) for line in run.path.read_text().splitlines()]
    assert [row["type"] for row in rows] == ["start", "task", "warning", "end"] and rows == run.rows()
    assert rows[0]["schema"] == results.SCHEMA and rows[0]["config_hash"] == results.config_hash(CONFIG)
    assert rows[0]["device"] == "cpu" and rows[0]["path"] == "x" and rows[0]["seen"] == [1, 2]
    assert rows[1] == {"type": "task", "row": [50.0, None], "loss": None, "n": 3, "t": [1, 2]}
    assert rows[3]["summary"]["class_il_last"] == 12.5
    with pytest.raises(TypeError, match="row.f is of type function"):
        run.task({"f": new_run})
    with pytest.raises(ValueError, match="status"):
        run.end({"status": "finished"})


def test_config_hash_ignores_what_does_not_change_the_numbers():
    base = results.config_hash(CONFIG)
    assert base == results.config_hash(dict(reversed(CONFIG.items())))
    for key in [*results.VOLATILE, "conf_host"]:
        assert results.config_hash(CONFIG | {key: "other"}) == base, key
    for change in ({"lr": 0.2}, {"seed": 1}, {"device": "cuda"}, {"buffer_size": 5}, {"lr": None}):
        assert results.config_hash(CONFIG | change) != base, change
    gpu = [results.config_hash(CONFIG | {"device": d}) for d in ("cuda:1", "0", torch.device("cuda"))]
    assert len(set(gpu)) == 1


def test_find_run_gives_the_newest_of_the_same_configuration(tmp_path):
    assert results.find_run(tmp_path, "seq-mnist", "er", results.config_hash(CONFIG)) is None
    runs = [new_run(tmp_path), new_run(tmp_path, lr=0.2), new_run(tmp_path, notes="again")]
    assert len({run.folder for run in runs}) == 3
    for run in runs:
        run.start({})
    found = results.find_run(tmp_path, "seq-mnist", "er", results.config_hash(CONFIG))
    assert found.folder == runs[2].folder and found.status == "running"
    assert results.find_run(tmp_path, "seq-mnist", "er", results.config_hash(CONFIG | {"lr": 0.3})) is None
    runs[2].close()
    assert found.status == "interrupted"
    for status in ("failed", "interrupted", "done"):
        found.truncate(0)
        found.end({"status": status})
        found.close()
        assert results.RunRecord(found.folder).status == status


def test_second_writer_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "LOCK_PATIENCE_S", 0.05)
    run = new_run(tmp_path)
    with pytest.raises(UserError, match="another process"):
        results.RunRecord(run.folder).warning("me too")
    run.close()
    results.RunRecord(run.folder).warning("now")
    assert [row["text"] for row in run.rows()] == ["now"]


WRITER = """
import os, sys, time
from utils.engine.record import open_run
run = open_run(sys.argv[1], "d", "m", {"seed": 0})
run.start({})
child = os.fork()  # as a loader's worker is: must not keep the lock of a dead parent
if child == 0:
    print(os.getpid(), flush=True)  # by now it has let go of what it was born with
    time.sleep(20)
    os._exit(0)
time.sleep(20)
"""


def test_killed_writer_reads_as_interrupted_at_once(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        found = results.find_run(tmp_path, "d", "m", results.config_hash({"seed": 0}))
        assert found.status == "running"
        process.kill()
        process.wait()
        assert found.status == "interrupted"
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_truncate_drops_later_rows_and_a_torn_line(tmp_path):
    run = new_run(tmp_path)
    run.start({})
    run.task({"t": 0})
    kept = run.size
    run.task({"t": 1})
    with open(run.path, "ab") as file:
        file.write(b'{"type": "task", "t": 2')
    assert [row.get("t") for row in run.rows()] == [None, 0, 1]
    run.close()
    again = results.RunRecord(run.folder)
    again.truncate(kept)
    assert again.size == kept
    again.task({"t": "new"})
    assert [row.get("t") for row in again.rows()] == [None, 0, "new"]
    again.truncate(kept - 1)  # not at the end of a line
    assert [row["type"] for row in again.rows()] == ["start"]
    with pytest.raises(UserError, match="shorter"):
        again.truncate(10**6)


def test_writer_after_a_torn_line_starts_a_new_one(tmp_path):
    run = new_run(tmp_path)
    run.start({})
    with open(run.path, "ab") as file:
        file.write(b'{"type": "ta')
    run.close()
    again = results.RunRecord(run.folder)
    again.task({"t": 0})
    assert [row["type"] for row in again.rows()] == ["start", "task"]


def test_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "record.jsonl"
    path.write_text('{"type": "start"}\n{"type\n{"type": "end"}\n')
    with pytest.raises(UserError, match="line 2"):
        results.read_record(path)


@pytest.mark.parametrize(
    "line",
    [
        "[1, 2]",
        "5",
        "null",
        "{}",
        '{"type": 3}',
        '{"type": "end"}',
        '{"type": "end", "status": 1}',
        '{"type": "end", "status": "done", "summary": 5}',
    ],
)
def test_a_line_that_is_json_but_no_row_is_named(tmp_path, line):
    path = tmp_path / "record.jsonl"
    path.write_text(f'{{"type": "start"}}\n{line}\n')
    with pytest.raises(UserError, match=f"line 2 of {path} is not a record entry; restore"):
        results.read_record(path)


def test_what_stands_in_the_place_of_a_record_is_named(tmp_path):
    with pytest.raises(UserError, match=f"cannot read {tmp_path}: "):
        results.read_record(tmp_path)


def test_full_disk_in_mid_run_is_one_line_and_tears_nothing(tmp_path, monkeypatch):
    run = new_run(tmp_path)
    run.start({})
    before = run.path.read_bytes()
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
        with pytest.raises(UserError, match=f"no space left for {run.path}"):
            run.task({"t": 0})
    assert run.path.read_bytes() == before

    def refuse(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        with pytest.raises(UserError, match=f"no space left for {run.path}"):
            run.task({"t": 0})
    run.task({"t": 1})
    assert [row["type"] for row in run.rows()] == ["start", "task"]


def test_check_writable(tmp_path, monkeypatch):
    results.check_writable(tmp_path / "not" / "yet")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        results.check_writable(tmp_path / "file" / "runs")
    with pytest.raises(UserError, match="cannot write /proc"):
        results.check_writable("/proc/runs")  # refused even to root
    monkeypatch.setattr(results, "FREE_FLOOR_BYTES", 2**80)
    with pytest.raises(UserError, match="MiB are free"):
        results.check_writable(tmp_path)


def test_many_writers_never_share_a_folder(tmp_path):
    code = (
        "import sys\nfrom utils.engine.record import open_run\n"
        "for i in range(20):\n    r = open_run(sys.argv[1], 'd', 'm', {}); r.start({'i': i}); r.close()"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT) for _ in range(2)]
    assert [w.wait() for w in writers] == [0, 0]
    assert [len(results.read_record(p)) for p in tmp_path.glob("d/m/*/record.jsonl")] == [1] * 40


def test_table_is_aligned():
    table = results.format_table([["task", "acc", "note"], ["one", 5.0, None], ["three", 100.0, "x"]])
    assert table.splitlines() == [
        "task      acc  note",
        "-----  ------  ----",
        "one      5.00  -",
        "three  100.00  x",
    ]
    assert results.format_table([["a", "b"]]).splitlines()[0] == "a  b"
    assert results.format_table([["a"], [float("nan")]]).splitlines()[-1] == "-"


@pytest.mark.parametrize("n", [3, 20])
def test_plot_is_a_png_that_shows_the_cells(tmp_path, n):
    from matplotlib.image import imread

    R = np.tril(np.full((n, n), 90.0))
    R[R == 0] = np.nan
    results.plot_matrix(R, tmp_path / "a.png", "class-IL")
    R[n - 1, 0] = 10.0
    results.plot_matrix(R, tmp_path / "b.png", "class-IL")
    a, b = imread(tmp_path / "a.png"), imread(tmp_path / "b.png")
    changed = np.argwhere((a != b).any(-1))
    assert 0 < len(changed) < a.shape[0] * a.shape[1] / n  # one cell, and only that
    assert changed[:, 0].min() > a.shape[0] / 2 and changed[:, 1].max() < a.shape[1] / 2  # lower left


def test_status_is_quick_with_many_runs(tmp_path):
    for _ in range(50):
        run = new_run(tmp_path)
        run.start({})
        run.close()
    start = time.perf_counter()
    assert results.find_run(tmp_path, "seq-mnist", "er", results.config_hash(CONFIG)).status == "interrupted"
    assert time.perf_counter() - start < 0.5
