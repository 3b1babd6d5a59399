"""The examples of CONTRIBUTING.md run as they are printed."""

import re
import shlex
import sys
from unittest import mock

import pytest

import datasets
import models
from tests import test_contract_models as contract_checks
from tests.conftest import newest_record
from utils import cli
from utils.cli import registry

TEXT = (registry.ROOT / "CONTRIBUTING.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The files, found by name like those of the packages."""
    for package in (models, datasets):
        (tmp_path / package.__name__).mkdir()
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / package.__name__)])
    found = re.findall(r"`((?:models|datasets)/\w+\.py)`[^`]*:\n\n```python\n(.*?)```", TEXT, re.S)
    assert [code for _, code in found] == blocks("python"), "each example says the name of its file"
    for path, code in found:
        (tmp_path / path).write_text(code)
    with mock.patch.dict(registry._registered["model"]), mock.patch.dict(sys.modules):
        yield


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line)[2:] for line in lines if line.startswith("python main.py")]


@pytest.mark.parametrize("argv", commands(), ids=" ".join)
def test_commands_run(examples, run_main, argv):
    code, rows = run_main(*argv, "--seed", "0")
    assert code == 0 and rows[-1]["status"] == "done"
    summary = rows[-1]["summary"]
    assert summary.get("task_il_last", summary.get("vqa_avg")) > 60, "it learns: chance is 50"


def test_both_kinds_of_example_are_run():
    assert {argv[argv.index("--dataset") + 1] for argv in commands()} == {
        "seq-mnist",
        "seq-stripes",
        "seq-signs",
        "plate-questions",
    }


def test_they_are_listed(examples):
    assert "balanced-er" in cli.listing("models") and "seq-stripes" in cli.listing("datasets")


@pytest.mark.parametrize("check", contract_checks.CHECKS, ids=lambda c: c.__name__)
def test_the_method_keeps_the_contract(examples, tmp_path, check):
    contract_checks.trained.cache_clear()
    check("balanced-er", tmp_path) if check.__code__.co_argcount == 2 else check("balanced-er")
    contract_checks.trained.cache_clear()


def test_paths_and_tiers_exist():
    for path in set(re.findall(r"`((?:tests|scripts)/[\w./]+\.(?:py|sh))`", TEXT)):
        assert (registry.ROOT / path).is_file(), path


def test_the_record_of_an_example_names_it(examples, run_main, tmp_path):
    run_main(*commands()[0], "--seed", "0", results=tmp_path / "own")
    assert newest_record(tmp_path / "own")[0]["args"]["model"] == "balanced-er"
