"""Every command of a protocol script: the flags of main.py parse, and the options of the tables exist."""

import functools
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from utils import cli

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(
    p.name for p in (ROOT / "scripts").glob("*.sh") if p.name.startswith(("claims_", "paper_", "classics"))
)
SCRIPTS.remove("paper_table.sh")  # its commands depend on its arguments; tests/test_paper_table.py
OF_A_SEED = ("--seed", "--picture_seed", "--custom_task_order")
RECORDER = """#!/usr/bin/env bash
if [ "$1" = -c ]; then exec {python} "$@"; fi
printf '%q ' "$@" >> "$COMMANDS"; echo >> "$COMMANDS"
"""


def commands(name: str, folder: Path) -> list[list[str]]:
    """What the script gives to Python, each once whatever the seed, in a tree where Python only writes that down."""
    for kind in ("scripts", ".venv/bin", "docs/img"):
        (folder / kind).mkdir(parents=True)
    (folder / "scripts" / name).write_text((ROOT / "scripts" / name).read_text())
    (folder / "scripts" / "setup.sh").write_text("exit 0\n")
    (folder / ".venv/bin/python").write_text(RECORDER.format(python=shlex.quote(sys.executable)))
    (folder / ".venv/bin/python").chmod(0o755)
    written = folder / "commands"
    env = {**os.environ, "COMMANDS": str(written), "REFERENCE": "tiny", "JOBS": "1"}
    done = subprocess.run(["bash", f"scripts/{name}"], cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    found = [shlex.split(line) for line in written.read_text().splitlines()]
    return list({tuple(without(c, *OF_A_SEED, "--clove_order", "--results_path")): c for c in found}.values())


def without(command: list[str], *flags: str) -> list[str]:
    drop = {i + k for i, word in enumerate(command) if word in flags for k in (0, 1)}
    return [word for i, word in enumerate(command) if i not in drop]


@functools.cache
def help_of(script: str) -> str:
    return subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_script_runs_is_understood(name, tmp_path):
    found = commands(name, tmp_path)
    runs = [c[1:] for c in found if c[0] == "main.py"]
    assert len(runs) > 3 and len(found) > len(runs)
    for argv in runs:
        assert cli.parse(argv) is not None, argv
    for script, *words in (c for c in found if c[0] != "main.py"):
        assert all(word in help_of(script) for word in words if word.startswith("--")), (script, words)


def test_arms_of_a_claims_script_have_names_of_their_own(tmp_path):
    """Tables are made from names: two settings under one name would be taken for seeds of one arm."""
    for name in (n for n in SCRIPTS if n.startswith("claims_")):
        folder = tmp_path / name
        folder.mkdir()
        runs = [
            without(c, "--results_path", "--phases", "--dataset", "--mtil_order")
            for c in commands(name, folder)
            if c[0] == "main.py"
        ]
        kinds = {tuple(without(c, *OF_A_SEED)) for c in runs}
        assert len({c[c.index("--notes") + 1] for c in kinds}) == len(kinds), name
