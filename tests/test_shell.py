"""How the program exits: closed pipes, signals before and during training, faults of plug-ins."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import main
from tests.conftest import newest_record
from utils.cli import plugins
from utils.cli.registry import ROOT
from utils.engine.run import Run

PLUGINS = Path(__file__).resolve().parent / "plugins"
FAULTY = [
    "--plugins",
    str(PLUGINS),
    "--model",
    "drop-faulty",
    "--dataset",
    "drop-digits",
    "--lr",
    "0.1",
    "--num_filters",
    "2",
    "--device",
    "cpu",
    "--non_verbose",
    "1",
    "--seed",
    "0",
]
QUIET = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def no_plugins_afterwards():
    yield
    plugins.use(None)


def started(*argv: str, **how) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "main.py"), *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=QUIET, **how)


@pytest.mark.parametrize(
    "argv", [["main.py", "--list"], ["main.py", "--help"], ["scripts/report.py", "--help"]], ids=" ".join
)
def test_a_reader_that_leaves_early(argv, tmp_path):
    """As `| head -2`: the pipe is closed before everything is written."""
    command = [sys.executable, str(ROOT / argv[0]), *argv[1:]]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60, env=QUIET)
    os.close(writer)
    swallowed = {0} if argv[0] != "main.py" else set()  # argparse does it, where the pipe is written to at once
    assert done.returncode in {141} | swallowed and done.stderr == b""


def test_a_path_that_is_not_utf8_is_shown(tmp_path):
    """As in en_US.UTF-8, where Python refuses to print it."""
    code = "import sys; from utils.cli import shell; sys.exit(shell.exits(lambda: print('/tmp/\\udcff') or 0))"
    strict = QUIET | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=strict, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "/tmp/\\udcff\n", "")


@pytest.mark.parametrize("seconds", [0.05, 0.5, 1.2])
def test_ctrl_c_before_training(seconds, tmp_path):
    """At any moment of the start, most of which is the import of torch, which may swallow a KeyboardInterrupt."""
    argv = [
        "--model",
        "sgd",
        "--dataset",
        "seq-tiny",
        "--lr",
        "0.1",
        "--results_path",
        str(tmp_path / "runs"),
        "--device",
        "cpu",
    ]
    code = "import sys, main; from utils.cli import shell; print('up', flush=True); sys.exit(shell.exits(main.main))"
    command = [
        sys.executable,
        "-c",
        code,
        *argv,
        "--n_epochs",
        "50",
        "--non_verbose",
        "1",
        "--base_path",
        str(tmp_path),
    ]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=QUIET, cwd=ROOT)
    assert run.stdout.readline() == "up\n"
    time.sleep(seconds)
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 130
    lines = [line for line in told.splitlines() if not line.startswith("finishing this step")]
    assert len(lines) == 1 and lines[0].startswith("stopped by signal 2"), told


@pytest.mark.parametrize(
    "first, how",
    [(signal.SIGINT, "sleeps"), (signal.SIGTERM, "sleeps"), (signal.SIGHUP, "sleeps"), (signal.SIGINT, "computes")],
)
def test_the_second_signal_quits_at_once(first, how, tmp_path):
    """The first waits for the end of the step, here a minute long, or one product of which Python sees nothing."""
    run = started(*FAULTY, "--how", how, "--results_path", str(tmp_path / "runs"), "--base_path", str(tmp_path))
    while "step 2" not in run.stdout.readline():
        assert run.poll() is None
    run.send_signal(first)
    time.sleep(0.3)
    assert run.poll() is None, "the first one waits"
    begun = time.monotonic()
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=20)
    assert run.returncode == 130 and time.monotonic() - begun < 5


def test_sighup_saves_and_ends_like_sigterm(data, tmp_path, capfd, monkeypatch):
    argv = [
        "--model",
        "sgd",
        "--dataset",
        "seq-mnist",
        "--lr",
        "0.05",
        "--seed",
        "1",
        "--base_path",
        str(data),
        "--device",
        "cpu",
        "--results_path",
        str(tmp_path / "runs"),
        "--non_verbose",
        "1",
        "--resume",
        "auto",
    ]
    real, seen = Run.tick, []

    def tick(self, **position):
        seen.append(1)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGHUP)
        return real(self, **position)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "tick", tick)
        assert main.main(argv) == 128 + signal.SIGHUP
    assert "stopped by signal 1; --resume auto continues" in capfd.readouterr().err
    rows = newest_record(tmp_path / "runs")
    assert (rows[-1]["status"], rows[-1]["signal"]) == ("interrupted", signal.SIGHUP)
    assert list((tmp_path / "runs").rglob("auto.safetensors"))
    assert main.main(argv) == 0


def test_nohup_is_respected(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Run.signals(object.__new__(Run)):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_fault_in_a_plugin_ends_in_the_file_that_is_at_fault(tmp_path, capfd):
    code = main.main([*FAULTY, "--results_path", str(tmp_path / "runs"), "--base_path", str(tmp_path)])
    lines = capfd.readouterr().err.splitlines()
    file = PLUGINS / "models" / "drop_faulty.py"
    assert code == 1 and lines[0].startswith("Traceback") and f'  File "{file}", line 26, in go_wrong' in lines
    assert lines[-1] == f"error: the plug-in {file} failed in line 26, go_wrong: ZeroDivisionError: division by zero"
    assert newest_record(tmp_path / "runs")[-1]["status"] == "failed"


def test_a_fault_of_ours_is_not_blamed_on_a_plugin(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "tick", lambda self, **position: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main.main([*FAULTY, "--results_path", str(tmp_path / "runs"), "--base_path", str(tmp_path)])
