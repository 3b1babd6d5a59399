"""Answers to a command line without torch: what each kind of command imports, and that the text is the same."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.cli import parser, plugins, preview, registry, signatures
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
ER = "--model er --dataset seq-mnist --buffer_size 20 --lr 0.1"
HEAVY = "torch torchvision numpy PIL scipy sklearn pandas matplotlib timm transformers".split()
# command -> exit code, text on stdout, text on stderr
COMMANDS = {
    "--list": (0, "seq-tiny", ""),
    "--help": (0, "--model", ""),
    "--modell er": (2, "", "unknown flag '--modell'"),
    "--model er --dataset seq-mnst": (2, "", "unknown dataset 'seq-mnst'"),
    "--model finetune --dataset seq-mnist --help": (0, "--lr", "model finetune is sgd here"),
    "--model cgil --dataset seq-tiny --help": (0, "--n_context", ""),
    "--model er --dataset seq-mnist --backbone vit --help": (0, "backbone vit", ""),
    f"{ER} --buffr_size 3": (2, "", "unknown flag '--buffr_size'"),
    f"{ER} --batch_size 0 --optimizer sdg": (2, "", "--optimizer: 'sdg' is not one of"),
    "--model er --dataset seq-mnist": (2, "", "--buffer_size is missing"),
    "--model cgil --dataset seq-tiny --show_config": (0, "n_context", ""),
    f"{ER} --fitting_mode iters": (2, "", "--fitting_mode iters needs --n_iters"),
    "--model joint --dataset mnist-360": (2, "", "mnist-360 is general-continual"),
    "--model er --dataset seq-mnist --protocol nonsense": (2, "", "unknown protocol 'nonsense'"),
}


def python(code: str, *argv: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own, which has imported nothing."""
    known = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, env=known, capture_output=True, text=True)


def test_each_kind_of_command_is_answered_without_torch():
    code = f"""
import contextlib, io, json, sys, main
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main(command.split())
    print(json.dumps([code, out.getvalue(), err.getvalue(), [m for m in {HEAVY!r} if m in sys.modules]]))"""
    done = python(code, json.dumps(list(COMMANDS)))
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [a[3] for a in answers] == [[]] * len(COMMANDS)
    for (command, (code, out, err)), (was, stdout, stderr, _) in zip(COMMANDS.items(), answers, strict=True):
        assert (was, out in stdout, err in stderr) == (code, True, True), (command, was, stdout[-300:], stderr)
        assert bool(stdout) == (code == 0) and bool(stderr) == bool(err), command


def pairings() -> list[list[str]]:
    """Commands in which each model, dataset and backbone occurs."""
    kinds = {kind: registry.names(kind) for kind in registry.PACKAGES}
    nets = itertools.cycle(kinds["backbone"])
    long, short = sorted((kinds["model"], kinds["dataset"]), key=len, reverse=True)
    pairs = [p if long is kinds["model"] else p[::-1] for p in zip(long, itertools.cycle(short), strict=False)]
    return [["--model", m, "--dataset", d, "--backbone", next(nets)] for m, d in pairs]


def digests() -> list[str]:
    """Of everything that `--help` shows about each pairing, or of the error."""
    found = []
    for argv in pairings():
        whole = parser.new_parser()
        try:
            first = parser.first_pass(whole, [*argv, "--help"])[0]
            parser.second_pass(whole, first, [*argv, "--help"])
            actions = [
                (a.option_strings, a.dest, repr(a.default), a.choices, a.help, a.required) for a in whole._actions
            ]
            text = json.dumps([actions, [str(getattr(a.type, "__name__", "")) for a in whole._actions]], default=str)
            assert preview.plain(whole)
        except UserError as error:
            text = str(error)
        found.append(f"{' '.join(argv)} {hashlib.sha256(text.encode()).hexdigest()}")
    return found


def test_flags_are_those_of_the_real_packages():
    """Every registered name, with stand-ins in another process and with torch in this one."""
    code = """
import sys
from utils.cli import preview
preview.OURS.add("tests")
sys.meta_path.insert(0, preview.Finder())
from tests import test_preview
print(*test_preview.digests(), sep="\\n")
print(type(sys.modules["torch"]) is preview.Module)"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    *quick, last = done.stdout.splitlines()
    assert last == "True"
    assert quick == digests()
    for kind in registry.PACKAGES:
        assert all(any(f"--{kind} {name} " in line for line in quick) for name in registry.names(kind))


PARTS = {  # what a file does with torch -> the answer and whether it is an error; None: torch must be imported to tell
    "parser.add_argument('--kind', default=torch.float32)": None,
    "parser.add_argument('--kind', choices=list(torch.__all__))": None,
    "parser.add_argument('--kind', choices=[torch.relu])": None,
    "parser.add_argument('--kind', choices=list(torch.names))": None,
    "parser.add_argument('--kind', default=1 if torch.version == '2' else 2)": None,
    "parser.add_argument('--kind', default=f'{torch.pi}')": None,
    "if torch.cuda.is_available(): parser.add_argument('--kind')": None,
    "parser.add_argument('--kind', default=3) if isinstance(3, torch.Tensor) else None": None,
    "parser.add_argument('--kind', default=1 if 'x' in torch.names else 2)": None,
    "try:\n    parser.add_argument('--kind', default=int(torch.pi))\nexcept Exception:\n    pass": None,
    "parser.set_defaults(lr=torch.pi)": None,
    "import no_such_package": ("No module named 'no_such_package'", True),
    "parser.add_argument('--kind', default=3)": ("said", False),
}


def test_what_depends_on_a_package_is_not_guessed():
    code = f"""
import argparse, sys
from utils.cli import plugins, preview
from utils.errors import UserError
for body in {list(PARTS)!r}:
    parser = argparse.ArgumentParser()
    def read():
        try:
            exec("import torch\\n" + body, {{"parser": parser}})
        except ModuleNotFoundError as error:
            raise UserError(error) from None
        return "said"
    found = preview.answer(read, parser)
    print(found and (found.text, found.wrong))
    assert "torch" not in sys.modules and not any(isinstance(f, preview.Finder) for f in sys.meta_path)
print(preview.answer(lambda: 1 / 0, parser), preview.answer(lambda: __import__("os")._exit(0), parser))"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines == [*map(str, PARTS.values()), "None None"]


def test_a_process_with_torch_reads_the_command_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert preview.answer(lambda: pytest.fail("was called"), parser.new_parser()) is None


def test_code_of_a_plug_in_is_run_once(tmp_path, monkeypatch):
    """Its import may do anything, so that the command is not rehearsed."""
    monkeypatch.setattr(preview, "answer", lambda *_: pytest.fail("was called"))
    (tmp_path / "mine.py").write_text('"""M."""\n\n\nclass M:\n    NAME = "mine"\n    COMPATIBILITY = ["class-il"]\n')
    with pytest.raises(UserError, match="unknown flag '--lrr'"):
        parser.parse(f"--plugins {tmp_path} --model mine --dataset seq-mnist --lrr 1".split())
    plugins.use(None)


def test_classes_of_unknown_bases_keep_their_own_parameters():
    foreign, other = preview.StandIn(), preview.StandIn()

    class Own:
        pass

    class Net(foreign, Own):
        def __init__(self, width=3):
            self.width = width

    class Both(other, Net):
        pass

    class Bare(foreign):
        pass

    assert issubclass(Both, Own) and Net().width == 3
    with pytest.raises(preview.Unknown):
        Bare()
    whole = parser.new_parser()
    signatures.add_arguments(whole, Net, "net")
    assert preview.plain(whole) and "--width" in whole.format_help()
    signatures.add_arguments(whole, Bare, "bare")
    assert not preview.plain(whole)  # so that the real signature is read
