"""scripts/check_method.py: its output for a correct method and for faulty ones."""

import re
import subprocess
import sys

import pytest

from scripts import check_method
from tests.test_contract_models import CHECKS
from tests.test_contributing import blocks
from utils.cli import plugins, registry

ADDS_POSITION = '''"""Fine-tuning whose answers depend on the place in the batch, with a flag that nothing reads."""

import torch

from models.utils.continual_model import ContinualModel


class Placed(ContinualModel):
    NAME = "placed"
    COMPATIBILITY = ["class-il"]

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--nothing", type=float, default=1.0, help="read by nobody")
        return parser

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        return loss.detach()

    def forward(self, x):
        return self.net(x) + torch.arange(len(x))[:, None]
'''
RAISES = ADDS_POSITION.replace("self.opt.zero_grad()", 'raise KeyError("prototypes")')


@pytest.fixture(autouse=True)
def no_plugins_after():
    yield
    plugins.use(None)


def checked(path, *words) -> tuple[int, dict[str, tuple[str, str]], str]:
    """Exit code, check -> (ok, skip or FAIL, reason), and what is on stderr."""
    command = [sys.executable, str(registry.ROOT / "scripts" / "check_method.py"), path.name, *words]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, timeout=300)
    rows = re.findall(r"^(ok|skip|FAIL) +(\w+) +[\d.]+ s *(.*)$", done.stdout, re.M)
    return done.returncode, {check: (outcome, reason) for outcome, check, reason in rows}, done.stderr


def test_a_good_plug_in_passes_every_check(tmp_path):
    (tmp_path / "balanced_er.py").write_text(blocks("python")[0])
    code, found, _ = checked(tmp_path / "balanced_er.py")
    assert code == 0 and list(found) == [*(check.__name__ for check in CHECKS), "short_run_on_seq_tiny"]
    assert {outcome for outcome, _ in found.values()} == {"ok"}


def test_a_bad_plug_in_is_told_what_is_wrong(tmp_path):
    (tmp_path / "placed.py").write_text(ADDS_POSITION)
    names = ["described", "shuffled_batch_gives_shuffled_outputs", "every_flag_changes_something"]
    code, found, _ = checked(tmp_path / "placed.py", "--only", *names)
    assert code == 1 and [found[name][0] for name in names] == ["ok", "FAIL", "FAIL"]
    assert "Tensor-likes are not close" in found[names[1]][1]
    assert "--nothing set to" in found[names[2]][1] and "changes nothing" in found[names[2]][1]


def test_an_error_inside_the_plug_in_names_its_line(tmp_path):
    (tmp_path / "raises.py").write_text(RAISES)
    line = RAISES.splitlines().index('        raise KeyError("prototypes")') + 1
    code, found, _ = checked(tmp_path / "raises.py", "--only", "finite", check_method.LAST)
    assert code == 1 and found["finite"] == ("FAIL", f"KeyError: 'prototypes' (raises.py, line {line})")
    assert found[check_method.LAST] == ("FAIL", "KeyError: 'prototypes'")


@pytest.mark.parametrize(
    "text, words, said",
    [
        (None, [], "no such file or folder"),
        ("x = 1\n", [], "no model, dataset or backbone is recognized"),
        (ADDS_POSITION, ["--only", "no_such_check"], "unknown check no_such_check"),
        (ADDS_POSITION, ["--model", "other"], "defines no method other"),
        (ADDS_POSITION.replace('["class-il"]', '["cssl"]'), ["--only", "finite"], "works in cssl"),
        (ADDS_POSITION.replace("import torch\n", "import no_such_package\n", 1), [], "no_such_package"),
        (ADDS_POSITION + '\n\nclass Second(Placed):\n    NAME = "second"\n', [], "several methods"),
    ],
)
def test_what_cannot_be_checked_is_said_in_one_line(text, words, said, tmp_path, capsys):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    assert check_method.main([str(path), *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_without_a_file_it_says_how_to_call_it(capsys):
    assert check_method.main([]) == 2 and "my_method.py" in capsys.readouterr().err
    assert check_method.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == check_method.check_names()
