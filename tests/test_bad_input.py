"""Every user error exits with code 2 and one line per error on stderr; before training, nothing is written."""

import errno
import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from models.er import Er
from tests import fabricate
from tests.conftest import comparable, newest_record
from utils.cli.registry import ROOT
from utils.engine import checkpoint
from utils.engine import record as results

SGD = ["--model", "sgd", "--dataset", "seq-mnist", "--lr", "0.05", "--seed", "1"]
ER = ["--model", "er", "--dataset", "seq-mnist", "--lr", "0.05", "--seed", "1", "--buffer_size", "20"]


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def start(data, tmp_path, capfd):
    """start(*argv): (exit code, lines on stderr) of the command line, run in this process."""

    def run(*argv: str, base: Path = data, runs: Path | str | None = None) -> tuple[int, list[str]]:
        capfd.readouterr()
        runs = tmp_path / "runs" if runs is None else runs
        code = main.main(
            [*argv, "--base_path", str(base), "--results_path", str(runs), "--device", "cpu", "--non_verbose", "1"]
        )
        return code, capfd.readouterr().err.splitlines()

    return run


@pytest.fixture
def refused(start, tmp_path):
    """refused(*argv): the one line that a run is refused with; nothing is written."""

    def check(*argv: str, lines: int = 1, **where) -> str:
        before = files_under(tmp_path / "runs")
        code, told = start(*argv, **where)
        told = [line for line in told if not line.startswith("warning: ")]
        assert code == 2 and len(told) == lines, told
        assert all(line.startswith("error: ") for line in told)
        assert files_under(tmp_path / "runs") == before and (before or not (tmp_path / "runs").exists())
        return "\n".join(told)

    return check


# names and flags


@pytest.mark.parametrize(
    "argv, parts",
    [
        ([*SGD[2:], "--model", "sgdd"], ["unknown model 'sgdd'", "Closest: sgd"]),
        (["--model", "sgd", "--dataset", "seq-minst"], ["unknown dataset 'seq-minst'", "seq-mnist"]),
        ([*SGD, "--backbone", "resnet81"], ["unknown backbone 'resnet81'", "resnet18"]),
        ([*SGD, "--momentum", "1"], ["unknown flag '--momentum'"]),
        ([*SGD, "--n_epochs", "two"], ["--n_epochs: 'two' is not an integer"]),
        ([*SGD, "--n_epochs", "9" * 23], ["--n_epochs: 99999999999999999999999 is out of range"]),
        ([*SGD[:-1], "9" * 40], ["is out of range: 9223372036854775807 is the largest integer"]),
        ([*SGD, "--custom_class_order", ""], ["--custom_class_order: '' is not a list of integers such as 0,2,1"]),
        ([*SGD, "--custom_task_order="], ["--custom_task_order: '' is not a list of integers such as 0,2,1"]),
        ([*SGD, "--backbone", ""], ["--backbone needs a name", "--list backbones"]),
        ([*SGD, "--mlp_hidden_size", "0"], ["--mlp_hidden_size 0: a layer needs at least one unit"]),
        (
            [*SGD, "--backbone", "resnet18", "--num_filters", "-3"],
            ["--num_filters -3: a network needs at least one filter"],
        ),
        ([*SGD, "--batch_size", "0"], ["--batch_size: 0 is out of range"]),
        ([*ER, "--optim_mom", "-1"], ["--optim_mom: -1 is out of range"]),
        (ER[:-1] + ["0"], ["--buffer_size: 0 is out of range"]),
        (ER[:-1] + ["-3"], ["--buffer_size: -3 is out of range"]),
        (ER[:-2], ["--buffer_size is missing"]),
        (["--model", "sgd", "--dataset", "seq-mnist"], ["--lr is missing"]),
        ([*SGD, "--custom_class_order", "0,1,2"], ["--custom_class_order must hold each of 0..9 once"]),
        ([*SGD, "--custom_class_order", "0,0,1,2,3,4,5,6,7,8"], ["--custom_class_order must hold each of 0..9 once"]),
        ([*SGD, "--custom_task_order", "0,1,2,3,5"], ["--custom_task_order must hold each of 0..4 once"]),
        ([*SGD, "--stop_after", "5"], ["--stop_after 5", "tasks 0 to 4"]),
        ([*SGD, "--start_from", "3", "--stop_after", "1"], ["--start_from 3 is after --stop_after 1"]),
        ([*SGD, "--eval_future", "1"], ["--eval_future 1: model sgd cannot name classes"]),
        ([*SGD, "--fitting_mode", "iters"], ["needs --n_iters"]),
        ([*SGD, "--fitting_mode", "early_stopping"], ["needs --validation"]),
        ([*SGD, "--lr_scheduler", "multisteplr"], ["needs --lr_milestones"]),
        ([*SGD, "--noise_type", "asymmetric", "--noise_rate", "0.2"], ["no table of confusable classes"]),
        ([*SGD, "--label_perc", "0.5", "--lpc", "0.5"], ["--label_perc_by_task or --label_perc_by_class"]),
        ([*SGD, "--validation", "0.99"], ["--validation leaves no training image"]),
        ([*SGD, "--loadcheck", "nowhere.safetensors"], ["--loadcheck nowhere.safetensors: no such file"]),
    ],
    ids=lambda v: "-".join(v[-2:]) if v and str(v[0]).startswith("--") else "",
)
def test_flags(refused, argv, parts):
    told = refused(*argv)
    for part in parts:
        assert part in told


def test_device_that_is_not_there(data, tmp_path, capfd):
    argv = [*SGD, "--base_path", str(data), "--results_path", str(tmp_path / "runs"), "--device", "cuda:99"]
    assert main.main(argv) == 2 and not (tmp_path / "runs").exists()
    (told,) = capfd.readouterr().err.splitlines()
    assert told.startswith("error: --device cuda:99 cannot be used")


def test_device_that_computes_nothing(data, tmp_path, capfd):
    argv = [*SGD, "--base_path", str(data), "--results_path", str(tmp_path / "runs"), "--device", "meta"]
    assert main.main(argv) == 2 and not (tmp_path / "runs").exists()
    (told,) = capfd.readouterr().err.splitlines()
    assert told.startswith("error: --device meta cannot be used")


def test_several_mistakes_are_several_lines(refused):
    told = refused(*ER, "--batch_size", "0", "--optimizer", "sdg", "--momentum", "1", lines=3)
    assert "--batch_size" in told and "'sdg'" in told and "--momentum" in told


def test_a_method_that_does_not_fit_names_datasets_that_do(refused):
    told = refused("--model", "icarl", "--dataset", "perm-mnist", "--buffer_size", "20", "--lr", "0.1")
    assert "perm-mnist is domain-il" in told
    fits = told.split("Datasets that fit: ")[1].split(", ")
    assert {"seq-mnist", "seq-cifar10"} <= set(fits) and "perm-mnist" not in fits


@pytest.mark.parametrize(
    "argv, part",
    [
        (["--model", "sgdd", "--dataset", "seq-mnist"], "unknown model"),
        ([*SGD, "--base_path", "/nonexistent"], "/nonexistent"),
    ],
)
def test_as_a_process(argv, part, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *argv, "--results_path", str(tmp_path / "runs"), "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    told = done.stderr.splitlines()
    assert done.returncode == 2 and len(told) == 1 and told[0].startswith("error: ") and part in told[0]
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


# data


@pytest.mark.parametrize("name", ["seq-mnist", "perm-mnist", "mnist-360", "seq-cifar10", "seq-cifar100"])
def test_missing_data(refused, tmp_path, name):
    told = refused("--model", "sgd", "--dataset", name, "--lr", "0.1", base=tmp_path / "no data")
    assert str(tmp_path / "no data") in told and "does not exist" in told and "MB" in told
    assert f"prepare_data.py {name}" in told


def test_truncated_and_corrupt_archives(refused, tmp_path):
    fabricate.mnist(tmp_path / "d")
    path = tmp_path / "d/MNIST/MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} is truncated or corrupt" in refused(*SGD, base=tmp_path / "d")
    fabricate.cifar10(tmp_path / "d")
    path = tmp_path / "d/CIFAR10/cifar-10-batches-py/test_batch"
    path.write_bytes(b"\x80\x02no pickle")
    told = refused("--model", "sgd", "--dataset", "seq-cifar10", "--lr", "0.1", base=tmp_path / "d")
    assert f"{path} is truncated or corrupt" in told


def relabelled(base: Path, change) -> Path:
    """MNIST whose training labels went through `change`."""
    folder = fabricate.mnist(base)
    path = folder / "train-labels-idx1-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[:8] + change(np.frombuffer(content[8:], np.uint8)).astype(np.uint8).tobytes())
    return base


@pytest.mark.parametrize("name", ["seq-mnist", "perm-mnist"])
def test_labels_out_of_range(refused, tmp_path, name):
    base = relabelled(tmp_path / "d", lambda labels: np.where(labels == 9, 11, labels))
    told = refused("--model", "sgd", "--dataset", name, "--lr", "0.1", base=base)
    assert "labels run from 0 to 11, but there are 10 classes" in told


def test_empty_class_of_a_late_task(refused, tmp_path):
    base = relabelled(tmp_path / "d", lambda labels: np.where(labels == 9, 8, labels))
    assert "no training image of class nine" in refused(*SGD, base=base)


def test_broken_images_are_named_before_training(start, tmp_path):
    fabricate.image_folder(tmp_path / "p", ["a", "b"], 8, 1, (12, 10))
    argv = [
        "--model",
        "sgd",
        "--dataset",
        "seq-folder",
        "--folder_path",
        str(tmp_path / "p"),
        "--n_tasks",
        "1",
        "--image_size",
        "32",
        "--lr",
        "0.1",
        "--n_epochs",
        "1",
        "--backbone",
        "resnet18",
    ]
    bad = sorted((tmp_path / "p/train").rglob("*.png"))[2:14]
    for path in bad:
        path.write_bytes(path.read_bytes()[:60])
    code, told = start(*argv)
    assert code == 2 and len(told) == 1 and told[0].startswith("error: 12 of 18 images cannot be read: ")
    assert [str(path) in told[0] for path in bad] == [True] * 10 + [False] * 2 and " and 2 more: replace" in told[0]
    assert not newest_record(tmp_path / "runs"), "no run has begun"


def test_an_image_that_breaks_during_the_run_stops_it_in_one_line(start, tmp_path, monkeypatch):
    fabricate.image_folder(tmp_path / "p", ["a", "b"], 4, 1, (12, 10))
    path = tmp_path / "p/train/b/2.png"
    begin = Er.begin_task
    monkeypatch.setattr(Er, "begin_task", lambda *args: (path.write_bytes(path.read_bytes()[:60]), begin(*args)))
    code, told = start(
        "--model",
        "er",
        "--buffer_size",
        "9",
        "--dataset",
        "seq-folder",
        "--folder_path",
        str(tmp_path / "p"),
        "--n_tasks",
        "1",
        "--image_size",
        "32",
        "--lr",
        "0.1",
        "--n_epochs",
        "1",
        "--backbone",
        "resnet18",
    )
    assert code == 2 and len(told) == 1 and told[0].startswith(f"error: image {path} has changed since this run began")
    assert newest_record(tmp_path / "runs")[-1]["status"] == "failed"


# results path


def test_results_path_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is not a folder; choose another --results_path" in refused(*SGD, runs=tmp_path / "file" / "runs")
    if Path("/proc/self").exists():  # not even root can write there
        assert "cannot write /proc" in refused(*SGD, runs="/proc/runs")


def test_checkpoint_path_that_cannot_be_written_is_told_before_training(refused, tmp_path):
    (tmp_path / "file").write_text("")
    told = refused(*SGD, "--savecheck", "last", "--checkpoint_path", str(tmp_path / "file" / "kept"))
    assert "file is not a folder; choose another --checkpoint_path" in told


def test_full_results_path_before_training(refused, monkeypatch):
    disk = namedtuple("disk", "f_bavail f_frsize")
    monkeypatch.setattr(results.os, "statvfs", lambda path: disk(10, 4096))
    assert "MiB are free" in refused(*SGD)


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_disk_that_fills_up_in_mid_run(start, tmp_path, monkeypatch):
    again = [*ER, "--resume", "auto"]
    with monkeypatch.context() as patch:
        real, seen = checkpoint._write_safetensors, []

        def fills_up(file, *args):
            seen.extend([1] if "task.safetensors" in file.name else [])  # a slow machine also saves within tasks
            return real(file, *args) if len(seen) < 3 else no_space()

        patch.setattr(checkpoint, "_write_safetensors", fills_up)
        code, told = start(*again)
    assert code == 2 and len(told) == 1 and "no space left for" in told[0]
    (kept,) = (tmp_path / "runs").glob("*/*/*/ckpt/task.safetensors")
    assert checkpoint.load(kept, model="er")["position"]["task"] == 1, "the checkpoint of the second task stays"
    rows = newest_record(tmp_path / "runs")
    types = [r["type"] for r in rows]  # the file is written beside the fourth task, which may be over before it fails
    assert types in ([["start", *["task"] * n, "end"] for n in (3, 4)]) and rows[-1]["status"] == "failed"
    assert start(*again)[0] == 0 and start(*ER, runs=tmp_path / "whole")[0] == 0
    assert comparable(newest_record(tmp_path / "runs")[-1]) == comparable(newest_record(tmp_path / "whole")[-1])


# checkpoints


def spoilt(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how in {"a list", "no rows"}:
        state = checkpoint.load(path, model="er")
        checkpoint.save(path, [1] if how == "a list" else {k: v for k, v in state.items() if k != "rows"}, model="er")
        return
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "no safetensors":
        path.write_bytes(b"\x80\x04pickle")
    else:
        old, new = {
            "newer": (f'"schema":"{checkpoint.SCHEMA}"'.encode(), b'"schema":"9"'),
            "another model": (b'"model":"er"', b'"model":"xy"'),
        }[how]
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))


SAID = {
    "truncated": "is damaged or not a checkpoint",
    "no safetensors": "is damaged or not a checkpoint",
    "a list": "does not contain the complete state of a run",
    "no rows": "does not contain the complete state of a run",
    "newer": f"newer than {checkpoint.SCHEMA}, the newest known here",
    "another model": "is a checkpoint of model xy, not er",
}


@pytest.mark.parametrize("how", SAID)
def test_checkpoints_that_cannot_be_used(start, refused, tmp_path, monkeypatch, how):
    with monkeypatch.context() as patch:  # an unfinished run with a checkpoint
        patch.setattr(Er, "end_eval", lambda self, dataset, accs: no_space() if self.current_task else None)
        with pytest.raises(OSError):
            start(*ER, "--resume", "auto")
    (path,) = (tmp_path / "runs").glob("*/*/*/ckpt/task.safetensors")
    spoilt(path, how)
    for flags in (["--resume", "auto"], ["--loadcheck", str(path)]):
        told = refused(*ER, *flags)
        assert str(path) in told and SAID[how] in told


def test_a_checkpoint_of_another_model_and_a_pickle(start, refused, tmp_path):
    assert start(*SGD, "--savecheck", "last", "--stop_after", "0")[0] == 0
    (path,) = (tmp_path / "runs").glob("*/*/*/ckpt/sgd_*_last.safetensors")
    assert "is a checkpoint of model sgd, not er; pass --model sgd" in refused(*ER, "--loadcheck", str(path))
    torch.save({"w": torch.zeros(1)}, tmp_path / "net.pth")
    assert "lacks 6 of the network's 6 tensors" in refused(*ER, "--loadcheck", str(tmp_path / "net.pth"))


# losses


def test_nan_loss_names_its_place_and_the_run_can_go_on(start, tmp_path, monkeypatch):
    argv = [
        "--model",
        "er",
        *SGD[2:],
        "--buffer_size",
        "20",
        "--batch_size",
        "16",
        "--n_epochs",
        "2",
        "--resume",
        "auto",
    ]
    with monkeypatch.context() as patch:
        real = Er.observe

        def observe(self, inputs, labels, not_aug_inputs, epoch=None):
            bad = (self.current_task, epoch, self.epoch_iteration) == (2, 1, 1)
            loss = real(self, inputs, labels, not_aug_inputs)
            return loss * float("nan") if bad else loss

        patch.setattr(Er, "observe", observe)
        code, told = start(*argv)
    assert code == 2 and len(told) == 1
    assert told[0].startswith("error: the loss is nan in task 3, epoch 2, batch 2")
    (kept,) = (tmp_path / "runs").glob("*/*/*/ckpt/task.safetensors")
    state = checkpoint.load(kept, model="er")
    assert state["position"]["task"] == 1
    assert newest_record(tmp_path / "runs")[-1]["status"] == "failed"
    assert start(*argv)[0] == 0 and start(*argv, runs=tmp_path / "whole")[0] == 0
    assert comparable(newest_record(tmp_path / "runs")[-1]) == comparable(newest_record(tmp_path / "whole")[-1])
    assert json.dumps(newest_record(tmp_path / "runs")).count('"start"') == 1


def test_a_learning_rate_far_too_large(start, tmp_path):
    code, told = start(*SGD[:4], "--lr", "1e30", "--seed", "1", "--batch_size", "16")
    assert code == 2 and len(told) == 1 and "in task 1, epoch 1, batch" in told[0] and "lower --lr" in told[0]


def test_a_finished_record_without_its_summary_is_refused(start, refused, tmp_path):
    again = [*SGD, "--resume", "auto", "--stop_after", "0"]
    assert start(*again)[0] == 0
    (path,) = (tmp_path / "runs").rglob("record.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + '{"type": "end", "status": "done"}\n')
    assert f"{path} says done but does not have a summary; restore the file" in refused(*again)


def test_a_first_line_without_the_drawn_seed_is_refused(start, refused, tmp_path):
    again = [*SGD[:-2], "--resume", "auto", "--stop_after", "0"]
    assert start(*again)[0] == 0
    (path,) = (tmp_path / "runs").rglob("record.jsonl")
    first = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps(first | {"args": None}) + "\n")
    assert f"the first line of {path} does not contain a seed; restore the file" in refused(*again)


@pytest.mark.parametrize("more", [[], ["--fitting_mode", "iters", "--n_iters", "2"]])
def test_a_batch_larger_than_the_task_with_drop_last(start, more):
    code, told = start(*SGD, "--batch_size", "100000", "--drop_last", "1", *more)
    assert code == 2 and len(told) == 1 and "error: --drop_last 1 leaves nothing of task 1: it has " in told[0]
    assert told[0].endswith("images, fewer than --batch_size 100000; lower that or leave --drop_last out")


def test_memory_that_no_machine_has(start, tmp_path):
    code, told = start(*ER[:-1], "99999999999999")
    assert code == 2 and len(told) == 1 and "a memory of 99,999,999,999,999 samples (examples) needs about" in told[0]
    assert told[0].endswith("lower --buffer_size")
    assert newest_record(tmp_path / "runs")[-1]["status"] == "failed"


def test_memory_that_runs_out_while_training(start, tmp_path, monkeypatch):
    """What no estimate foresees: torch's own words for it, clipped, and the flags to lower."""

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory {'x' * 500}")

    monkeypatch.setattr(Er, "observe", observe)
    code, told = start(*ER)
    assert code == 2 and len(told) == 1 and told[0].startswith("error: out of memory (") and "--buffer_size" in told[0]
    assert newest_record(tmp_path / "runs")[-1]["status"] == "failed"
