"""The quick start runs valid commands, passes its arguments on, and ends with the tables."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils import cli

ROOT = Path(__file__).resolve().parent.parent


def start(folder: Path, python: str, *flags: str) -> str:
    """Run a copy of the script beside a .venv whose python is the given shell line; returns stdout."""
    (folder / "scripts").mkdir()
    (folder / "scripts" / "setup.sh").write_text("echo set up\n")
    (folder / "scripts" / "quickstart.sh").write_text((ROOT / "scripts" / "quickstart.sh").read_text())
    (folder / "scripts" / "report.py").symlink_to(ROOT / "scripts" / "report.py")
    (folder / "main.py").symlink_to(ROOT / "main.py")
    program = folder / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\n{python} "$@"\n')
    program.chmod(0o755)
    command = ["bash", str(folder / "scripts" / "quickstart.sh"), *flags]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout


def test_runs_that_the_command_line_accepts(tmp_path):
    out = start(tmp_path, "printf 'CALL %s\\n'; printf '%s\\n' \"$*\" >>calls; true", "--seed", "3").splitlines()
    assert out[0] == "set up"
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert [call[0] for call in calls] == ["main.py", "main.py", "scripts/report.py"]
    assert calls[2][1:] == ["runs"]
    for call, model in zip(calls, ("clip", "cgil"), strict=False):
        args = cli.parse(call[1:]).args
        assert (args.model, args.dataset, args.seed, args.clip_backbone) == (model, "seq-tiny", 3, "tiny")


def test_stops_at_the_first_failure(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as failed:
        start(tmp_path, "echo called; exit 2;")
    assert failed.value.returncode == 2 and failed.value.stdout.count("called") == 1


@pytest.mark.slow
def test_ends_with_tables(tmp_path):
    results = tmp_path / "runs"
    flags = "--results_path", str(results), "--base_path", str(tmp_path / "data"), "--device", "cpu"
    out = start(tmp_path, f"exec {sys.executable}", *flags)
    assert out.count("class-il, final average") == 2 and out.count("record: ") == 2 and out.count("plot: ") >= 2
    assert len(list(results.glob("seq-tiny/*/*/record.jsonl"))) == 2 == len(list(results.glob("**/class_il.png")))
    assert os.path.exists(out.split("record: ")[1].split()[0])
    assert f"report: {results / 'report.html'}" in out and "<h2>seq-tiny</h2>" in (results / "report.html").read_text()
