"""--eval_every and --eval_final: fewer evaluations, the same training, and a record that says what is absent."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from scripts import records
from scripts.reporting import payload
from tests.conftest import comparable, in_child, newest_record
from utils.engine import training
from utils.engine.record_schema import wrong_record

BASE = "--model er --buffer_size 20 --dataset seq-mnist --lr 0.1 --seed 2 --batch_size 32 --n_epochs 1".split()


def tasks(rows):
    return [row for row in rows if row["type"] == "task"]


@pytest.fixture
def counted(monkeypatch):
    """The number of test sets that each evaluation scores."""
    found, real = [], training.evaluate_tasks

    def evaluate_tasks(model, dataset, loaders, future=False):
        found.append(len(loaders))
        return real(model, dataset, loaders, future)

    monkeypatch.setattr(training, "evaluate_tasks", evaluate_tasks)
    return found


@pytest.mark.parametrize(
    "flags, scored", [(("--eval_every", "2"), [2, 4, 5]), (("--eval_final", "1"), [5]), (("--eval_every", "9"), [5])]
)
def test_only_the_tasks_asked_for_are_evaluated(run_main, counted, flags, scored):
    _, whole = run_main(*BASE)
    assert counted == [1, 2, 3, 4, 5]
    counted.clear()
    code, rows = run_main(*BASE, *flags)
    assert (code, counted) == (0, scored)
    for number, (row, full) in enumerate(zip(tasks(rows), tasks(whole), strict=True), start=1):
        if number in scored:
            assert row["scores"] == full["scores"] and row["per_class"] == full["per_class"] and "evaluated" not in row
        else:
            assert (row["scores"], row["per_class"], row["ece"], row["evaluated"]) == ({}, [], None, False)
    summary, full = rows[-1]["summary"], whole[-1]["summary"]
    assert summary["class_il_last"] == full["class_il_last"] and summary["ece"] == full["ece"]
    assert summary["image_forwards"] < full["image_forwards"]
    gone = {name for name in full if name.startswith(("class_il", "task_il"))} - summary.keys()
    ends = ("avg", "forgetting", "bwt")
    assert gone == {"class_il_avg_images"} | {f"{name}_{end}" for name in ("class_il", "task_il") for end in ends}
    assert wrong_record(rows) is None


def test_a_killed_run_goes_on_with_the_same_evaluations(run_main, tmp_path, monkeypatch):
    argv = [*BASE, "--eval_every", "3"]
    whole = run_main(*argv, results=tmp_path / "whole")[1]
    real, seen = training._write_row, []

    def write(*args):
        real(*args)
        seen.append(1)
        if len(seen) == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(training, "_write_row", write)
    assert in_child(lambda: run_main(*argv, "--resume", "auto", results=tmp_path / "killed")) == 9
    monkeypatch.undo()
    assert run_main(*argv, "--resume", "auto", results=tmp_path / "killed")[0] == 0
    killed = newest_record(tmp_path / "killed")
    assert [comparable(r) for r in tasks(killed)] == [comparable(r) for r in tasks(whole)]
    assert comparable(killed[-1])["summary"] == comparable(whole[-1])["summary"]


@pytest.mark.parametrize(
    "flags, told",
    [
        ("--eval_every 2 --eval_final 1", "--eval_final 1 leaves nothing for --eval_every"),
        ("--eval_every 2 --probe tiny", "--probe measures after each task, so it does not go with --eval_every"),
        ("--eval_final 1 --enable_other_metrics 1", "--enable_other_metrics measures after each task"),
        ("--eval_every 0", "--eval_every: "),
    ],
)
def test_what_needs_every_evaluation_is_refused(run_main, capsys, flags, told):
    assert run_main(*BASE, *flags.split())[0] == 2
    assert told in capsys.readouterr().err


def test_the_curve_of_the_report_has_a_gap_there():
    def curve(*scores):
        rows = [{"task": t, "scores": {"class_il": s} if s else {}} for t, s in enumerate(scores)]
        return payload.curve(records.Run(Path(), {"args": {}}, rows, {}))

    assert np.allclose(curve([], [60.0, 80.0], []), [np.nan, 70.0, np.nan], equal_nan=True)
    assert curve([50.0, None], [60.0, 80.0]) == [50.0, 70.0] and curve([], []) == []


def test_the_matrix_of_the_report_has_an_empty_row_there():
    rows = [
        {"task": t, "scores": s} for t, s in enumerate([{}, {"class_il": [60.0, None]}, {"class_il": [50.0, 80.0]}])
    ]
    run = records.Run(Path(), {"args": {}}, rows, {})
    assert payload.scores_of([run]) == ["class_il"]
    assert payload.matrix([run], "class_il") == [[None, None], [60.0, None], [50.0, 80.0]]
