"""Idioms of files written for Mammoth, each as a small plug-in that runs."""

from pathlib import Path

import pytest
import torch

import main
from tests.conftest import newest_record
from utils import cli
from utils.cli import plugins, registry

HERE = Path(__file__).resolve().parent / "plugins"
FLAGS = ["--plugins", str(HERE), "--non_verbose", "1", "--seed", "0", "--device", "cpu", "--num_filters", "2"]
MEMORY = ["--buffer_size", "12", "--minibatch_size", "6"]


@pytest.fixture(autouse=True)
def no_plugins_afterwards():
    yield
    plugins.use(None)


@pytest.fixture
def start(tmp_path, capfd):
    def run(*argv: str) -> list[dict]:
        capfd.readouterr()
        flags = FLAGS[:-2] if "--num_filters" in argv else FLAGS
        code = main.main([*argv, *flags, "--results_path", str(tmp_path / "runs"), "--base_path", str(tmp_path)])
        assert code == 0, capfd.readouterr().err
        return newest_record(tmp_path / "runs")

    return run


@pytest.mark.parametrize(
    "model, dataset, more",
    [
        ("drop-dreaming", "drop-digits", MEMORY),
        ("drop-dreaming", "drop-digits", [*MEMORY, "--lr", "0.1"]),
        ("drop-bias", "drop-digits", [*MEMORY, "--lr", "0.02"]),
        ("drop-views", "drop-digits", [*MEMORY, "--lr", "0.02"]),
        ("drop-attend", "drop-digits", ["--lr", "0.02"]),
        ("drop-columns", "drop-digits", ["--lr", "0.02"]),
        ("er", "drop-rounds", [*MEMORY, "--lr", "0.02"]),
        ("er", "drop-digits-r", [*MEMORY, "--lr", "0.02"]),
    ],
)
def test_it_runs(start, model, dataset, more):
    rows = start("--model", model, "--dataset", dataset, *more)
    assert rows[-1]["status"] == "done" and rows[-1]["summary"]["image_forwards"] > 0


def test_a_learning_rate_of_0_that_a_file_sets_itself():
    argv = ["--plugins", str(HERE), "--model", "drop-dreaming", "--dataset", "drop-digits", *MEMORY]
    assert cli.parse(argv).args.lr == 0
    assert cli.parse([*argv, "--lr", "0.3"]).args.lr == 0.3
    with pytest.raises(Exception, match="--lr: 0 is out of range"):
        cli.parse([*argv, "--lr", "0"])


def test_a_streams_default_that_a_files_choices_do_not_hold():
    """seq-tiny sets --clip_backbone tiny; the file, which knows two others, keeps its own default."""
    argv = ["--plugins", str(HERE), "--model", "drop-dreaming", "--dataset", "seq-tiny", *MEMORY]
    assert cli.parse(argv).args.clip_backbone == "ViT-L/14"
    with pytest.raises(Exception, match="--clip_backbone: 'tiny' is not one of ViT-B/16, ViT-L/14"):
        cli.parse([*argv, "--clip_backbone", "tiny"])


def test_a_held_out_part_of_task_and_memory(start):
    """A quarter of 24 new images, and of the 12 that are stored."""
    held = []
    plugins.use([str(HERE)])
    kind = registry.load("model", "drop-bias")
    real = kind.end_task
    kind.end_task = lambda self, dataset: (
        real(self, dataset),
        held.append((self.held[-1], len(dataset.train_loader.dataset))),
    )
    try:
        start("--model", "drop-bias", "--dataset", "drop-digits", *MEMORY, "--lr", "0.02")
    finally:
        kind.end_task = real
    assert held == [(6, 18), (9, 27), (9, 27)]


def test_scores_of_a_method_that_needs_the_tasks_number(start):
    """They are task-IL scores; class-IL is not defined."""
    rows = start(
        "--model", "drop-columns", "--dataset", "drop-digits", "--lr", "0.05", "--n_epochs", "8", "--num_filters", "8"
    )
    summary = rows[-1]["summary"]
    assert summary["task_il_last"] > 60 and "class_il_last" not in summary


def test_defaults_come_from_the_set_that_is_subclassed():
    args = cli.parse(["--plugins", str(HERE), "--model", "sgd", "--dataset", "drop-digits-r", "--lr", "0.1"]).args
    assert (args.batch_size, args.n_epochs, args.backbone) == (8, 1, "resnet18")
    assert {"drop-digits", "drop-digits-r", "drop-rounds"} <= set(registry.names("dataset"))
    assert "drop-digits-r" not in registry.names("model")


def test_a_subclass_by_itself(tmp_path):
    """A single file on --plugins, beside the folder of what it subclasses."""
    file = HERE / "datasets" / "drop_digits_r.py"
    plugins.use([str(file)])
    assert "drop-digits-r" in registry.names("dataset")


def test_views_of_a_batch():
    from utils.memory.buffer import apply

    batch = torch.rand(3, 3, 8, 8)
    a, b = apply(lambda image: (image + 1, image * 2), batch)
    assert torch.equal(a, batch + 1) and torch.equal(b, batch * 2)
