"""The type checker is strict on utils/engine and utils/cli, and knows the hooks of a model."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from utils.cli.registry import ROOT

MYPY = Path(sys.executable).with_name("mypy")
CONFIG = (ROOT / "pyproject.toml").read_text().partition("[tool.mypy]")[2]


def test_it_is_pinned_strict_and_part_of_ci():
    assert re.search(r"^mypy==", (ROOT / "requirements.txt").read_text(), re.M)
    assert "strict = true" in CONFIG and '"utils.engine", "utils.cli"' in CONFIG
    assert ".venv/bin/mypy" in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.skipif(not MYPY.exists() and not shutil.which("mypy"), reason="mypy is not installed in this environment")
def test_a_wrong_call_of_a_hook_is_found(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from models.utils.continual_model import ContinualModel\n\n\n"
        "def call(model: ContinualModel) -> None:\n    model.begin_task(3)\n    model.meta_begin_epoch('1')\n"
    )
    command = [MYPY if MYPY.exists() else "mypy", "--cache-dir", tmp_path / "cache", wrong]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    found = re.findall(r"^\S+wrong\.py:(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.M)
    assert {("5", "arg-type"), ("6", "arg-type"), ("6", "call-arg")} <= set(found), done.stdout
