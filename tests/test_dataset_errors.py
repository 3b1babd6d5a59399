"""Bad files and bad flags of the datasets: one line each that names the remedy."""

import os
import pickle
import struct
import warnings
from argparse import Namespace

import numpy as np
import pytest

from datasets import get_dataset
from tests import fabricate
from utils.errors import UserError


def load(name: str, base, **options):
    """All of a dataset's first task."""
    dataset = get_dataset(Namespace(dataset=name, base_path=str(base), seed=0, **options))
    return dataset.get_data_loaders()


def refused(name: str, base, **options) -> str:
    with pytest.raises(UserError) as error, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(name, base, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name, file",
    [
        ("seq-mnist", "MNIST/MNIST/raw/train-images-idx3-ubyte"),
        ("mnist-360", "MNIST/MNIST/raw/train-images-idx3-ubyte"),
        ("seq-cifar10", "CIFAR10/cifar-10-batches-py/data_batch_1"),
        ("seq-cifar100", "CIFAR100/cifar-100-python/train"),
    ],
)
def test_missing_files(tmp_path, name, file):
    message = refused(name, tmp_path)
    assert f"{tmp_path / file} does not exist" in message and " MB " in message
    assert f"python scripts/prepare_data.py {name} --base_path {tmp_path}" in message


@pytest.mark.parametrize("keep", [0, 3, 20, 5000])
def test_truncated_mnist(tmp_path, keep):
    path = fabricate.mnist(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:keep])
    message = refused("seq-mnist", tmp_path)
    assert str(path) in message and "truncated or corrupt" in message and "prepare_data.py" in message


def test_mnist_of_other_content(tmp_path):
    folder = fabricate.mnist(tmp_path)
    labels = folder / "train-labels-idx1-ubyte"
    short = struct.pack(">HBBI", 0, 8, 1, 9) + bytes(9)
    labels.write_bytes(short)
    assert "60 images but 9 labels" in refused("seq-mnist", tmp_path)
    labels.write_bytes(struct.pack(">HBBI", 0, 8, 1, 60) + bytes([10] * 60))
    assert "labels run from 10 to 10" in refused("seq-mnist", tmp_path)
    images = struct.pack(">HBBIII", 0, 8, 3, 60, 20, 20) + bytes(60 * 400)
    (folder / "train-images-idx3-ubyte").write_bytes(images)
    assert "(20, 20)" in refused("seq-mnist", tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 300, 20_000])
def test_truncated_cifar(tmp_path, keep):
    path = fabricate.cifar10(tmp_path) / "data_batch_3"
    path.write_bytes(path.read_bytes()[:keep])
    message = refused("seq-cifar10", tmp_path)
    assert str(path) in message and "truncated or corrupt" in message


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, protocol):
    path, made = fabricate.cifar10(tmp_path) / "data_batch_1", tmp_path / "made"
    path.write_bytes(pickle.dumps({"data": Evil(str(made)), "labels": []}, protocol=protocol))
    message = refused("seq-cifar10", tmp_path)
    assert "mkdir, which an array does not need" in message and not made.exists()
    pickle.loads(path.read_bytes())
    assert made.exists()  # so the file was dangerous


@pytest.mark.parametrize(
    "table",
    [
        [1, 2],
        {"labels": [0] * 4},
        {"data": np.zeros((4, 3072), np.float32), "labels": [0] * 4},
        {"data": np.zeros((4, 3000), np.uint8), "labels": [0] * 4},
        {"data": np.zeros((4, 3072), np.uint8), "labels": [0] * 3},
        {"data": np.zeros((4, 3072), np.uint8), "labels": ["cat"] * 4},
        {"data": np.zeros((4, 3072), np.uint8)},
    ],
)
def test_cifar_of_other_content(tmp_path, table):
    path = fabricate.cifar10(tmp_path) / "test_batch"
    path.write_bytes(pickle.dumps(table))
    assert f"{path} is truncated or corrupt" in refused("seq-cifar10", tmp_path)


def test_files_that_are_not_the_published_ones_are_said_once(tmp_path):
    folder = fabricate.cifar10(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        load("seq-cifar10", tmp_path)
    (message,) = [str(w.message) for w in caught]
    assert str(folder) in message and "not comparable" in message


def test_labels_out_of_range_and_empty_class(tmp_path):
    folder = fabricate.cifar10(tmp_path)
    images = np.zeros((10, 3072), np.uint8)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": images, "labels": list(range(1, 11))}))
    assert "labels run from 1 to 10, but there are 10 classes" in refused("seq-cifar10", tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": images, "labels": [0] * 10}))
    assert "no test image of class automobile" in refused("seq-cifar10", tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"custom_class_order": [0, 1, 2]}, "--custom_class_order must hold each of 0..9 once"),
        ({"custom_class_order": [0] * 10}, "--custom_class_order must hold each of 0..9 once"),
        ({"custom_task_order": [1, 2, 3, 4, 5]}, "--custom_task_order must hold each of 0..4 once"),
        ({"custom_task_order": [4, 3, 2, 1, 0], "permute_classes": True}, "give one of"),
        ({"validation": 99.9}, "--validation leaves no training image"),
        ({"label_perc": 0.5, "label_perc_by_class": 0.5}, "not both"),
    ],
)
def test_orders_and_shares(tmp_path, options, message):
    fabricate.cifar10(tmp_path)
    assert message in refused("seq-cifar10", tmp_path, **options)


@pytest.mark.parametrize(
    "name, options, message",
    [
        (
            "perm-mnist",
            {"permute_classes": True},
            "--permute_classes needs a dataset whose tasks have classes of their own",
        ),
        ("rot-mnist", {"joint": True}, "--joint needs"),
        ("seq-mnist", {"noise_rate": 0.2, "noise_type": "asymmetric"}, "no table of confusable classes"),
        ("mnist-360", {"noise_rate": 0.2}, "--noise_rate has no meaning"),
        ("mnist-360", {"eval_future": True}, "--eval_future has no meaning"),
        ("mnist-360", {"n_epochs": 2}, "use --n_epochs 1"),
        ("mnist-360", {"label_perc": 0.5}, "--label_perc"),
        ("mnist-360", {"drop_last": True}, "leave --drop_last out"),
    ],
)
def test_flags_that_do_not_suit_the_stream(tmp_path, name, options, message):
    fabricate.mnist(tmp_path)
    assert message in refused(name, tmp_path, **options)


def test_a_task_too_many(tmp_path):
    fabricate.mnist(tmp_path)
    for name in ("seq-mnist", "perm-mnist", "mnist-360"):
        dataset = get_dataset(Namespace(dataset=name, base_path=str(tmp_path), seed=0))
        for _ in range(dataset.N_TASKS):
            dataset.get_data_loaders()
        with pytest.raises(UserError, match="there is no task"):
            dataset.get_data_loaders()


# folders and lists


def folder(root, **options) -> str:
    return refused("seq-folder", root, folder_path=str(root), **({"n_tasks": 2, "image_size": 8} | options))


def test_folders(tmp_path):
    assert "does not exist" in folder(tmp_path / "none")
    fabricate.image_folder(tmp_path, ["a", "b"], 2, 1, (12, 10))
    assert "--n_tasks 3 does not fit the 2 classes" in folder(tmp_path, n_tasks=3)
    (tmp_path / "train" / "c").mkdir()
    assert f"{tmp_path / 'train' / 'c'} does not contain an image" in folder(tmp_path)
    (tmp_path / "train" / "c").rmdir()
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "z")
    assert "class 'z', which no training image has" in folder(tmp_path)
    (tmp_path / "test" / "z" / "0.png").unlink()
    (tmp_path / "test" / "z").rmdir()
    dataset = get_dataset(Namespace(dataset="seq-folder", folder_path=str(tmp_path), n_tasks=2, image_size=8))
    dataset.get_data_loaders()
    with pytest.raises(UserError, match="no test image of class b"):
        dataset.get_data_loaders()
    (tmp_path / "test").rename(tmp_path / "tests")
    assert "has no test/ or val/" in folder(tmp_path)
    (tmp_path / "other.txt").write_text("")
    assert "neither a folder nor a .csv or .jsonl" in folder(tmp_path / "other.txt")


def test_a_broken_image_is_named(tmp_path):
    fabricate.image_folder(tmp_path, ["a", "b"], 2, 1, (12, 10))
    path = tmp_path / "train" / "a" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    for workers in (0, 1):
        train, _ = load("seq-folder", tmp_path, folder_path=str(tmp_path), n_tasks=1, image_size=8, num_workers=workers)
        with pytest.raises(UserError) as error:
            list(train.epoch(0))
        assert str(error.value).startswith(f"image {path} cannot be read") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: [r for r in rows if r["split"] == "train"], "no row with split test or val"),
        (lambda rows: [r for r in rows if r["split"] == "test"], "no row with split train"),
        (lambda rows: [rows[0], rows[1] | {"split": "dev"}, *rows[2:]], "line 3: split 'dev'"),
        (lambda rows: [rows[0], rows[1] | {"label": ""}, *rows[2:]], "line 3: no value for label"),
        (
            lambda rows: [rows[0], rows[1] | {"path": "train/a/x.png"}, *rows[2:]],
            "x.png does not exist; fix or remove the row",
        ),
        (lambda rows: [r | {"path": ""} for r in rows], "line 2: no value for image"),
        (lambda rows: [{"path": r["path"], "split": r["split"]} for r in rows], "no column label"),
        (lambda rows: [r | {"task": "first"} for r in rows], "line 2: task 'first' is not a number"),
        (lambda rows: [r | {"question": "what?"} for r in rows], "no column answers"),
        (lambda rows: [r | {"question": "?", "answers": "|"} for r in rows], "line 2: no value for answers"),
    ],
)
def test_lists(tmp_path, change, message):
    fabricate.image_folder(tmp_path, ["a", "b"], 2, 1, (12, 10))
    path = fabricate.image_list(tmp_path / "list.csv", change(fabricate.rows_of(tmp_path)))
    found = folder(path)
    assert str(path) in found and message in found


def test_unreadable_rows(tmp_path):
    fabricate.image_folder(tmp_path, ["a", "b"], 2, 1, (12, 10))
    path = fabricate.image_list(tmp_path / "list.jsonl", fabricate.rows_of(tmp_path))
    lines = path.read_text().splitlines()
    for wrong in ("{", "[1]", '{"path": "train/a/0.png", "label": 0}'):
        path.write_text("\n".join([lines[0], wrong, *lines[1:]]))
        assert "line 2" in folder(path)
    path.write_bytes(b"\xff\xfe" + path.read_bytes())
    assert "cannot be read" in folder(path)
