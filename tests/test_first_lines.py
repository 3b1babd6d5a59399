"""What a run says first and while it lasts."""

import os
import signal
import time
from argparse import Namespace

import pytest

from utils import progress as bars
from utils.cli import shell
from utils.engine import first_lines
from utils.engine.run import Run

SGD = ["--model", "sgd", "--dataset", "seq-mnist", "--lr", "0.05", "--n_epochs", "1", "--seed", "7"]


def test_the_first_lines_of_a_run(run_main, tmp_path, capsys):
    code, rows = run_main(*SGD)
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sgd on seq-mnist: class-il, 5 tasks of 2 classes, 300 training and 100 test images"
    weights = (28 * 28 + 1) * 100 + 101 * 100 + 101 * 10
    counts = f"{weights / 1000:.3g} k parameters, 89.6 k of them trained at the start"
    assert lines[1] == f"network: mnistmlp, {counts}; device cpu; seed 7"
    assert lines[2].startswith(f"record: {tmp_path / 'runs'}") and "--resume auto" in lines[2]


@pytest.mark.parametrize(
    "argv, said",
    [
        (
            ["--model", "sgd", "--dataset", "perm-mnist", "--stop_after", "0"],
            "domain-il, 20 tasks of the same 10 classes",
        ),
        (
            ["--model", "clip", "--dataset", "seq-mnist", "--clip_backbone", "tiny", "--stop_after", "0"],
            "network: CLIP tiny, ",
        ),
        ([*SGD[:4], "--disable_log", "1"], "record: none"),
        ([*SGD[:4], "--autosave", "0"], "it cannot be continued"),
        (
            [*SGD[:4], "--joint", "1", "--fitting_mode", "iters", "--n_iters", "3"],
            "note: --joint 1 takes 3 steps in all",
        ),
    ],
)
def test_what_else_they_say(run_main, capsys, argv, said):
    train = [] if "clip" in argv else ["--lr", "0.05", "--debug_mode", "1"]
    assert run_main(*argv, *train, "--seed", "7")[0] == 0
    assert said in capsys.readouterr().out
    assert first_lines.note_of_fewer_steps(Namespace(joint=0, fitting_mode="iters", n_iters=3)) == []


def test_without_a_terminal_a_plain_line_now_and_then(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(bars.sys.stderr, "isatty", lambda: False, raising=False)
    with bars.progress("task 2/5", 200, Namespace(non_verbose=False), done=20) as bar:
        for _ in range(70):
            clock[0] += 1
            if bar.update(1):
                bar.set_postfix_str(f"loss {clock[0]:g}")
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "task 2/5: 50 steps of 200, 2:30 left, 1 steps/s loss 29",
        "task 2/5: 80 steps of 200, 2:00 left, 1 steps/s loss 59",
    ]
    with bars.progress("task", 9, Namespace(non_verbose=True)) as quiet:
        clock[0] += 99
        quiet.update(1)
    assert capsys.readouterr().err == ""


def test_the_first_ctrl_c_is_answered_while_a_step_lasts(capfd):
    """The step does not run Python instructions: the answer must not wait for its end."""
    run = object.__new__(Run)
    run.signal, run.polled = None, False
    with shell.second_signal_quits(), run.signals(), run.polling():
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 5
        told = ""
        while not told and time.monotonic() < deadline:
            told += capfd.readouterr().err
            time.sleep(0.01)
        assert told == "finishing this step; again to quit now\n" and run.signal == signal.SIGINT
    assert not shell.waits
