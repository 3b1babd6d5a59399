"""scripts/test.sh mammoth on a synthetic checkout: one verdict for each file, and an exit code."""

import os
import subprocess

import pytest

from scripts.try_mammoth import command_line, verdict
from utils.cli.registry import ROOT

SGD = """
from models.utils.continual_model import ContinualModel
{top}
class M(ContinualModel):
    NAME = '{name}'
    COMPATIBILITY = ['{setting}']
    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        {body}
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        return loss.item()
"""


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "models").mkdir()
    for name, top, body, setting in (
        ("fine", "", "pass", "class-il"),
        ("no-package", "import no_such_package_abc", "pass", "class-il"),
        ("wrong", "", "raise ValueError('wrong shape')", "domain-il"),
    ):
        text = SGD.format(name=name, top=top, body=body, setting=setting)
        (tmp_path / "models" / f"{name.replace('-', '_')}.py").write_text(text)
    return tmp_path


def test_each_file_gets_its_verdict(checkout, capfd):
    assert command_line([str(checkout)]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["fine", "runs"]
    assert lines[1].split() == ["no-package", "needs", "package", "no_such_package_abc"]
    assert lines[2].split()[:2] == ["wrong", "fails"] and lines[2].endswith("ValueError: wrong shape")
    assert lines[3] == "runs: 1  needs weights: 0  needs package: 1  fails: 1"


@pytest.mark.parametrize(
    "code, text, expected",
    [
        (0, "", ("runs", "")),
        (1, "Traceback\\n  x\\nurllib.error.URLError: <urlopen error>", "needs weights"),
        (2, "error: the weights of timm:x could not be loaded", "needs weights"),
        (1, "ModuleNotFoundError: No module named 'xitorch'", ("needs package", "xitorch")),
        (None, "", ("fails", "out of time")),
    ],
)
def test_verdicts(code, text, expected):
    found = verdict(code, text)
    assert found == expected if isinstance(expected, tuple) else found[0] == expected


def test_the_shell_script_passes_on(checkout):
    environment = {k: v for k, v in os.environ.items() if k != "MAMMOTH_PATH"}
    done = subprocess.run(
        ["bash", "scripts/test.sh", "mammoth"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0 and "MAMMOTH_PATH=<folder>" in done.stderr
    done = subprocess.run(
        ["bash", "scripts/test.sh", "mammoth", "--only", "nothing"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env=environment | {"MAMMOTH_PATH": str(checkout)},
    )
    assert done.returncode == 2 and "does not have a method nothing" in done.stderr
