"""The grids of the papers: main.py understands every command, and the script around one uses options that exist."""

import functools
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.sweeps import grid
from utils import cli

ROOT = Path(__file__).resolve().parent.parent
GRIDS = sorted((ROOT / "scripts" / "grids").glob("*.yaml"))
# runs that differ only in these are one case
OF_A_SEED = ("--seed", "--picture_seed", "--clove_order", "--results_path")
RECORDER = """#!/usr/bin/env bash
printf '%q ' "$@" >> "$COMMANDS"; echo >> "$COMMANDS"
"""
NUMBER = {  # of all runs, seeds included
    "classics": 22 * 3,
    "paper_cgil": (5 * 2 + 8) * 3,
    "paper_clumo": 2 * (6 * 6 + 14),
    "paper_exemplar_masking": 2 * (3 + 4),
    "paper_mulki": 2 * (1 + 7) + 8,
    "paper_zscl": 2,
}


def without(command: list[str], *flags: str) -> tuple[str, ...]:
    drop = {i + k for i, word in enumerate(command) if word in flags for k in (0, 1)}
    return tuple(word for i, word in enumerate(command) if i not in drop)


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_what_a_grid_runs_is_understood(path):
    lines = grid.read(str(path)).lines
    assert len(lines) == NUMBER[path.stem] and len({tuple(line.argv) for line in lines}) == len(lines)
    for argv in {without(line.argv, *OF_A_SEED): line.argv for line in lines}.values():
        assert cli.parse(argv) is not None, argv


@functools.cache
def help_of(script: str) -> str:
    return subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "more, models, seeds", [([], {}, []), (["1", "2"], {"MODELS": "er der"}, ["--seeds", "1", "2"])]
)
def test_the_script_of_the_classics(more, models, seeds, tmp_path):
    """In a tree where Python only writes down what it is given."""
    for kind in ("scripts", ".venv/bin"):
        (tmp_path / kind).mkdir(parents=True)
    (tmp_path / "scripts" / "classics.sh").write_text((ROOT / "scripts" / "classics.sh").read_text())
    (tmp_path / "scripts" / "setup.sh").write_text("exit 0\n")
    (tmp_path / ".venv/bin/python").write_text(RECORDER)
    (tmp_path / ".venv/bin/python").chmod(0o755)
    env = {"COMMANDS": str(tmp_path / "commands"), "PATH": "/usr/bin:/bin"} | models
    subprocess.run(["bash", "scripts/classics.sh", *more], cwd=tmp_path, env=env, check=True, timeout=60)
    (script, *sweep), (table, *written) = map(shlex.split, (tmp_path / "commands").read_text().splitlines())
    assert (script, table) == ("scripts/sweep.py", "scripts/classics_table.py")
    only = "--only=--model (er|der) " if models else "--only=--model (.*) "
    assert sweep == [
        *("scripts/grids/classics.yaml", "--jobs", "2", "--results_path", "runs/classics"),
        *(only, *seeds),
    ]
    for name, words in ((script, sweep), (table, written)):
        assert all(word.partition("=")[0] in help_of(name) for word in words if word.startswith("--"))
