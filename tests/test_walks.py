"""The walks of five people (tests/walks/), each in a fresh clone; in the suite: they name what exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from utils.cli import registry

WALKS = sorted(path for path in (Path(__file__).parent / "walks").glob("*.sh") if path.stem != "common")


@pytest.mark.slow
@pytest.mark.parametrize("walk", WALKS, ids=lambda path: path.stem)
def test_it_passes_on_a_fresh_clone(walk, tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(registry.ROOT), str(clone)], check=True)
    done = subprocess.run(
        ["bash", str(clone / "tests" / "walks" / walk.name)],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0 and done.stdout.rstrip().endswith(": ok"), done.stdout + done.stderr
    left = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True).stdout
    assert not left, "it leaves nothing behind"


def test_there_is_one_per_person():
    assert {path.stem for path in WALKS} == {"student", "own_folder", "mammoth_user", "reviewer", "gpu_person"}


@pytest.mark.parametrize("walk", WALKS, ids=lambda path: path.stem)
def test_its_methods_streams_and_scripts_exist(walk):
    text = walk.read_text()
    subprocess.run(["bash", "-n", str(walk)], check=True)
    calls = re.findall(r"^ *(?:run|refused) (\S+) (\S+)", text, re.M) + re.findall(
        r"--model (\S+) --dataset (\S+)", text
    )
    assert calls
    for model, dataset in calls:
        assert model in {"nmc", "drop-replay"} or registry.exists("model", model), model
        assert registry.exists("dataset", dataset), dataset
    for script in re.findall(r"scripts/\w+\.py", text):
        assert (registry.ROOT / script).is_file(), script
