"""Malicious input: paths, names, images, JSON, YAML, lists, sizes. Each ends in one line and exit code 2."""

import json
import os
import re
import struct
import time
import zlib
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import main
from backbone import clip_files
from datasets.utils import clove_files, mm_files
from datasets.utils.own_files import by_number
from datasets.utils.samples import FileSamples
from models.cgil import CGIL
from models.er import Er
from models.utils import reference
from scripts import caption_images
from tests import fabricate
from tests.conftest import ROOT
from utils import cli, json_text
from utils.cli import configs
from utils.engine import launch
from utils.errors import UserError, shown

SGD = ["--model", "sgd", "--lr", "0.1", "--seed", "1"]
TINY = [*SGD, "--dataset", "seq-tiny"]
FOLDER = [*SGD, "--dataset", "seq-folder", "--n_tasks", "1", "--image_size", "16", "--n_epochs", "1"]
LONG = "x" * 300
DEEP = "[" * 100_000


@pytest.fixture
def refused(tmp_path, capfd, monkeypatch):
    """refused(*argv): the one line that a run is refused with before anything but files in `kept` is written."""
    monkeypatch.chdir(tmp_path)

    def check(*argv: str, lines: int = 1, kept: tuple[str, ...] = ()) -> str:
        capfd.readouterr()
        before = {p for p in tmp_path.rglob("*")}
        where = [] if "--results_path" in argv else ["--results_path", str(tmp_path / "runs")]
        code = main.main([*argv, *where, "--device", "cpu", "--non_verbose", "1"])
        told = capfd.readouterr().err.splitlines()
        assert code == 2 and len(told) == lines and all(line.startswith("error: ") for line in told), told
        assert all(len(line) < 1200 for line in told)
        assert {p for p in tmp_path.rglob("*") if p.name not in kept} == before
        return "\n".join(told)

    return check


# paths and names


@pytest.mark.parametrize("model", ["sgd", "clip"])
@pytest.mark.parametrize(
    "path", [f"/tmp/{LONG}", LONG, "a/" * 2000, "~nosuchuser/x", "ä" * 200, "", "a\0b"], ids=lambda p: p[:12]
)
def test_every_path_flag_refuses_what_no_path_can_be(model, path):
    names = ["--base_path", "--results_path", "--checkpoint_path", "--loadcheck", "--plugins", "--folder_path"]
    for name in names + (["--clip_backbone"] if model == "clip" else []):
        folder = [] if name == "--folder_path" else ["--folder_path", "x"]
        with pytest.raises(UserError) as told:
            cli.parse(["--model", model, "--lr", "0.1", "--dataset", "seq-folder", *folder, name, path])
        assert len(str(told.value).splitlines()) == 1 and str(told.value).startswith(f"{name}: '"), told.value


def test_weights_and_reference_folders_are_paths_too():
    for model, dataset, name in (
        ("clumo", "clove-tiny-scene", "--vilt_weights"),
        ("clumo", "clove-tiny-scene", "--fusion_weights"),
        ("mulki", "mtil-tiny", "--reference"),
        ("zscl", "mtil-tiny", "--reference"),
    ):
        with pytest.raises(UserError, match=f"{name}: '.*longer than 255 bytes"):
            cli.parse(["--model", model, "--dataset", dataset, name, LONG])


def test_a_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cli.parse([*TINY, "--base_path", "~/data"]).args.base_path == "/home/somebody/data"


@pytest.mark.parametrize("kind", ["model", "dataset", "backbone", "dataset_config"])
@pytest.mark.parametrize(
    "value", [LONG, "m" * 10**6, "../../utils/cli", "a\0b", "a\nb"], ids=["long", "megabyte", "up", "nul", "line"]
)
def test_names(kind, value):
    argv = ["--model", "sgd", "--dataset", "seq-tiny", "--lr", "0.1"]
    if f"--{kind}" in argv:
        argv[argv.index(f"--{kind}") + 1] = value
    else:
        argv += [f"--{kind}", value]
    begun = time.monotonic()
    with pytest.raises(UserError) as told:
        cli.parse(argv)
    assert len(str(told.value)) < 400 and time.monotonic() - begun < 2


@pytest.mark.parametrize("name", ["../..", "..", "/tmp/x", "a/b", "", "a\\b", "x" * 81, "a\nb"])
def test_ckpt_name_stays_in_its_folder(refused, name):
    assert "--ckpt_name: '" in refused(*TINY, "--savecheck", "last", "--ckpt_name", name)


MEGABYTE = "9" * 10**6


@pytest.mark.parametrize(
    "argv",
    [
        ["--lr", MEGABYTE + "x"],
        ["--lr", MEGABYTE],
        ["--n_epochs", MEGABYTE],
        ["--optimizer", MEGABYTE],
        ["--" + MEGABYTE, "1"],
        [MEGABYTE],
        ["--custom_class_order", MEGABYTE + "x"],
        ["--disable_log", MEGABYTE],
        ["--noise_type", MEGABYTE],
        ["--list", MEGABYTE],
        ["--lr", *["1"] * 10**5],
        ["--non_verbose=" + MEGABYTE],
    ],
    ids=lambda argv: argv[0][:20],
)
def test_values_of_a_megabyte_are_clipped(argv):
    with pytest.raises(UserError) as told:
        cli.parse([*TINY[:2], *TINY[4:], *([] if "--lr" in argv else TINY[2:4]), *argv])
    assert all(len(line) < 500 for line in str(told.value).splitlines()), str(told.value)[:300]


def test_shown():
    assert shown("x" * 80) == "x" * 80
    assert shown("a" * 50 + "b" * 31) == f"{'a' * 40}...(81 characters)...{'b' * 20}"
    path = "/".join(["p" * 200] * 5)
    assert str(UserError(path)) == path, "a path is shown whole"
    assert len(str(UserError("a b " * 10**6))) < 1100 and str(UserError("\x1b[2Jx")) == "?[2Jx"
    assert str(UserError("one\ntwo")) == "one\ntwo"


# images


def png_of(width: int, height: int) -> bytes:
    """A PNG that ends after its head, which claims a size."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + b"\0\0\0\0IDAT"


HOSTILE_IMAGES = {
    "bomb.png": png_of(20_000, 20_000),
    "claims 10^18.png": png_of(10**9, 10**9),
    "claims 10^18.ppm": b"P6 1000000000 1000000000 255\n",
    "huge.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, 10**9, 10**9, 1, 24, 0, 0, 0, 0, 0, 0),
    "ends early.png": png_of(8, 8),
    "empty.png": b"",
    "text.jpg": b"no image at all",
    "zeros.jpg": bytes(4096),
    "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
    "negative.ppm": b"P6 -5 8 255\n",
    "letters.ppm": b"P6 a b 255\n",
    "tiff.tif": b"II*\0" + struct.pack("<I", 2**31),
    "gif.gif": b"GIF89a"
    + struct.pack("<HH", 65535, 65535)
    + b"\x80\0\0"
    + bytes(6)
    + b",\0\0\0\0"
    + struct.pack("<HH", 65535, 65535),
    "webp.webp": b"RIFF\xff\xff\xff\x7fWEBPVP8 ",
}


@pytest.mark.parametrize("name", HOSTILE_IMAGES)
def test_images(tmp_path, name):
    (tmp_path / name).write_bytes(HOSTILE_IMAGES[name])
    for read in (lambda: FileSamples([tmp_path / name], [0]).open(0), lambda: reference._read(tmp_path / name)):
        begun = time.monotonic()
        with pytest.raises(UserError, match="cannot be read") as told:
            read()
        assert f"image {tmp_path / name} cannot be read" in str(told.value) and "\n" not in str(told.value)
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("kind", ["PCX", "TGA", "ICO", "SGI", "PDF", "EPS"])
def test_images_of_other_kinds_under_a_known_name(tmp_path, kind):
    """They are whole, but what reads them is little used and may start programs."""
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "i.png", format=kind)
    with pytest.raises(UserError, match="i.png cannot be read"):
        FileSamples([tmp_path / "i.png"], [0]).open(0)


def test_a_bomb_in_a_folder(start_folder, refused_run):
    root = start_folder(["a", "b"])
    (root / "train" / "b" / "0.png").write_bytes(HOSTILE_IMAGES["bomb.png"])
    said = refused_run(*FOLDER, "--folder_path", str(root))
    assert "1 of 8 images cannot be read" in said and "0.png (Image size (400000000 pixels) exceeds limit" in said


@pytest.fixture
def start_folder(tmp_path):
    def make(classes: list[str]) -> Path:
        fabricate.image_folder(tmp_path / "p", classes, 3, 1, (12, 10))
        return tmp_path / "p"

    return make


@pytest.fixture
def refused_run(tmp_path, capfd):
    """refused_run(*argv): the one line that ends a run, which may have begun."""

    def check(*argv: str) -> str:
        capfd.readouterr()
        code = main.main([*argv, "--results_path", str(tmp_path / "runs"), "--device", "cpu", "--non_verbose", "1"])
        told = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("warning: ")]
        assert code == 2 and len(told) == 1 and told[0].startswith("error: "), told
        return told[0]

    return check


# JSON and YAML

HOSTILE_JSON = {
    "deep list": DEEP,
    "deep object": '{"a":' * 100_000,
    "5,000 digits": "9" * 5000,
    "cut": '{"a": 1',
    "empty": "",
    "no text": "\0\0",
    "a megabyte": '"' + "x" * 10**6,
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_json(tmp_path, name):
    text = HOSTILE_JSON[name]
    with pytest.raises(json.JSONDecodeError):
        json_text.parse(text)
    path = tmp_path / "f.json"
    path.write_text(text)

    def broken(path, reason):
        return UserError(f"{path} is broken: {reason}")

    readers = [lambda: clove_files.read_records(path, broken), lambda: clip_files.read_folder(tmp_path)]
    readers += [lambda: mm_files.read_captions(path)] if text else []
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"")
    for read in readers:
        with pytest.raises(UserError) as told:
            read()
        assert "\n" not in str(told.value) and str(tmp_path) in str(told.value)


def test_json_of_files_has_one_reader():
    """`json.loads` lets a RecursionError through; what reads a file calls utils/json_text.py instead."""
    folders = ("backbone", "datasets", "models", "scripts", "utils")
    files = [p for folder in folders for p in (ROOT / folder).rglob("*.py") if p.name != "json_text.py"]
    calls = re.compile(r"\bjson\.loads?\(|from json import")
    found = {p.name for p in files if calls.search(p.read_text(encoding="utf-8"))}
    assert len(files) > 150 and found <= {"preview.py"}  # it reads what its own child printed


def test_deep_captions_are_named(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text(DEEP + "\n")
    with pytest.raises(caption_images.Problem, match="line 1 is not a caption"):
        caption_images.done_so_far(path, "m", "p")


@pytest.mark.parametrize("text", ["NaN", '{"a": -Infinity}', "[Infinity]"])
def test_a_reader_may_refuse_what_is_no_json(text):
    json_text.parse(text)
    with pytest.raises(json.JSONDecodeError, match="is not JSON"):
        json_text.parse(text, strict=True)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{k}: &{k} [{', '.join(['*' + before] * 10)}]\n" for before, k in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE_YAML = {
    "deep": "a: " + "[" * 100_000,
    "deep map": "{a: " * 5_000,
    "5,000 digits": "n_epochs: " + "9" * 5000,
    "laughs": LAUGHS,
    "cycle": "a: &a [*a]",
    "keys": "1: 2",
    "no mapping": "- a",
    "empty": "",
    "tag": "a: !!python/object/apply:os.system [id]",
    "two documents": "a: 1\n---\nb: 2",
    "tab": "a:\n\t- 1",
    "binary": "\x00\x01",
    "date": "n_epochs: 2020-13-45",
    "unhashable": "? [a, b]\n: c",
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_yaml(tmp_path, name):
    path = tmp_path / "f.yaml"
    path.write_text(HOSTILE_YAML[name])
    begun = time.monotonic()
    with pytest.raises(UserError) as told:
        configs.read_yaml(path)
    assert "\n" not in str(told.value) and str(path) in str(told.value) and len(str(told.value)) < 1500
    assert time.monotonic() - begun < 10


# folders and lists of images


def test_a_class_folder_that_is_not_utf8(refused, start_folder):
    root = start_folder(["a", "b"])
    os.rename(root / "train" / "b", os.fsencode(root / "train") + b"/\xff\xfe")
    told = refused(*FOLDER, "--folder_path", str(root))
    assert "class folder b'" in told and r"\xff\xfe" in told and told.endswith("rename it")


def test_images_whose_names_are_not_utf8_are_read(start_folder, tmp_path, capfd):
    root = start_folder(["a", "b"])
    os.rename(root / "train" / "b" / "0.png", os.fsencode(root / "train" / "b") + b"/\xff.png")
    argv = [
        *FOLDER,
        "--folder_path",
        str(root),
        "--results_path",
        str(tmp_path / "runs"),
        "--device",
        "cpu",
        "--non_verbose",
        "1",
    ]
    assert main.main(argv) == 0


@pytest.mark.parametrize("pair", [("a_b", "a b"), ("é", "e\u0301"), ("x__", "x _")], ids=["blank", "composed", "both"])
def test_two_class_folders_with_one_name(refused, start_folder, pair):
    root = start_folder([*pair, "other"])
    assert "have the same name: rename or merge them" in refused(*FOLDER, "--folder_path", str(root))


def listed(tmp_path: Path, rows: list[dict], suffix: str) -> Path:
    path = tmp_path / f"list.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("path,label,split\n" + "".join(f"{r['path']},{r['label']},{r['split']}\n" for r in rows))
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_labels_of_5000_digits(tmp_path, suffix):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "i.png")
    labels = ["9" * 5000, "1" + "0" * 4999, "7", "0012", "word"]
    rows = [{"path": "i.png", "label": label, "split": split} for label in labels for split in ("train", "test")]
    path = listed(tmp_path, rows, suffix)
    assert (
        main.main(
            [
                *FOLDER,
                "--folder_path",
                str(path),
                "--results_path",
                str(tmp_path / "runs"),
                "--device",
                "cpu",
                "--non_verbose",
                "1",
            ]
        )
        == 0
    )
    assert sorted(labels, key=by_number) == ["7", "0012", "1" + "0" * 4999, "9" * 5000, "word"]


@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png", "..", "./../secret.png"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_relative_paths_that_leave_the_folder_of_the_list(refused, tmp_path, suffix, path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "secret.png")
    rows = [{"path": path, "label": "a", "split": "train"}]
    told = refused(*FOLDER, "--folder_path", str(listed(tmp_path / "in", rows, suffix)))
    assert f"line {2 if suffix == 'csv' else 1}: {path} is outside the folder of the list" in told


@pytest.mark.parametrize("path", [LONG, "a\0b", "\udcff.png"], ids=["long", "nul", "surrogate"])
def test_paths_in_lists_that_no_path_can_be(refused, tmp_path, path):
    source = listed(tmp_path, [{"path": path, "label": "a", "split": "train"}], "jsonl")
    assert "does not exist; fix or remove the row" in refused(*FOLDER, "--folder_path", str(source))


@pytest.mark.parametrize(
    "line",
    [DEEP, "9" * 5000, "[1]", '{"path": 1}', "{", '{"path": {"a": 1}, "label": [1], "split": "train"}'],
    ids=["deep", "digits", "list", "few", "cut", "nested"],
)
def test_lines_of_lists(refused, tmp_path, line):
    (tmp_path / "l.jsonl").write_text(line + "\n")
    assert f"{tmp_path / 'l.jsonl'}" in refused(*FOLDER, "--folder_path", str(tmp_path / "l.jsonl"))


# sizes


SIZES = [
    (
        [*FOLDER[:-4], "--image_size", "50000"],
        "one image of --image_size 50000, augmented and plain, needs about 60.0 GB",
    ),
    ([*FOLDER[:-4], "--image_size", str(2**63 - 1)], "one image of --image_size 9223372036854775807"),
    ([*FOLDER[:-4], "--image_size", "0"], "--image_size 0: it must be at least 1"),
    (
        [*FOLDER[:-4], "--image_size", "2000", "--max_memory_gb", "2"],
        "a batch of 6 images of 2000 x 2000 needs about 129.6 GB, but only 2.1 GB are allowed by",
    ),
    ([*FOLDER, "--num_workers", "500"], "--num_workers 500: this machine has"),
    ([*FOLDER, "--num_filters", "20000"], "--num_filters 20000, with gradients and momentum, needs about 12"),
    ([*FOLDER, "--num_filters", "9" * 18], "GB"),
    (
        [*SGD, "--dataset", "seq-mnist", "--mlp_hidden_size", "1000000"],
        "--mlp_hidden_size 1000000, with gradients and momentum, needs about 12",
    ),
]


@pytest.mark.parametrize("argv, part", SIZES, ids=lambda v: " ".join(v[-2:]) if isinstance(v, list) else "")
def test_sizes_that_no_machine_has(start_folder, refused_run, data, argv, part):
    begun = time.monotonic()
    where = ["--folder_path", str(start_folder(["a", "b"]))] if "seq-folder" in argv else ["--base_path", str(data)]
    assert part in refused_run(*argv, *where)
    assert time.monotonic() - begun < 20


# streams that a method cannot do with


def test_bic_with_one_image_of_a_class(refused, tmp_path):
    fabricate.image_folder(tmp_path / "p", ["a", "b", "c", "d"], 1, 1, (12, 10))
    argv = [
        "--model",
        "bic",
        "--buffer_size",
        "8",
        "--n_tasks",
        "2",
        *FOLDER[2:8],
        *FOLDER[10:],
        "--folder_path",
        str(tmp_path / "p"),
    ]
    told = refused(*argv)  # before a file is read
    assert "model bic needs 2 training images of every class; 4 of the 4 classes of seq-folder have fewer" in told


def test_bic_with_two_images_of_a_class(tmp_path):
    fabricate.image_folder(tmp_path / "p", ["a", "b", "c", "d"], 2, 1, (12, 10))
    argv = [
        "--model",
        "bic",
        "--buffer_size",
        "8",
        "--n_tasks",
        "2",
        *FOLDER[2:8],
        *FOLDER[10:],
        "--folder_path",
        str(tmp_path / "p"),
    ]
    where = ["--results_path", str(tmp_path / "runs"), "--device", "cpu", "--non_verbose", "1", "--bic_epochs", "2"]
    assert main.main([*argv, *where]) == 0


def test_a_method_that_needs_every_class_is_refused_before_training():
    """As cgil on a stream of questions, whose first task has a part of the answers."""
    stream = SimpleNamespace(SETTING="domain-il", N_CLASSES=3, task_order=[1, 0], count=lambda train: 6)
    stream.samples = lambda train: SimpleNamespace(
        targets=torch.tensor([0, 1, 2, 0, 0, 2]), task_ids=torch.tensor([0, 0, 0, 1, 1, 1])
    )
    stream.labels_in_use = lambda: stream.samples(True).targets
    args = Namespace(model="cgil", dataset="stream")
    with pytest.raises(
        UserError, match="needs 1 training image of every class in the first task; 1 of the 3 classes of stream"
    ):
        launch.check_class_sizes(args, CGIL, stream)
    stream.task_order = [0, 1]
    launch.check_class_sizes(args, CGIL, stream)
    launch.check_class_sizes(args, Er, stream)
