"""Tiny datasets in the real on-disk layouts, so that the real readers run without a download."""

import csv
import json
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def balanced(n: int, n_classes: int, rng: np.random.Generator) -> np.ndarray:
    """n labels in random order, every class as often as the others (up to one)."""
    return rng.permutation(np.arange(n) % n_classes)


def mnist(base: Path, n_train: int = 60, n_test: int = 30, seed: int = 0) -> Path:
    """The four idx files under <base>/MNIST/MNIST/raw; each digit's images share a bright spot."""
    folder, rng = Path(base) / "MNIST" / "MNIST" / "raw", np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for stem, n in (("train", n_train), ("t10k", n_test)):
        labels = balanced(n, 10, rng).astype(np.uint8)
        images = rng.integers(0, 100, (n, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 6, 8:20] = 255
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(
            struct.pack(">HBBIII", 0, 8, 3, n, 28, 28) + images.tobytes()
        )
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, n) + labels.tobytes())
    return folder


def cifar10(base: Path, n_train: int = 100, n_test: int = 40, seed: int = 0, protocol: int | None = None) -> Path:
    """data_batch_1..5 and test_batch under <base>/CIFAR10/cifar-10-batches-py; protocol None: as published."""
    folder = Path(base) / "CIFAR10" / "cifar-10-batches-py"
    names = [f"data_batch_{i}" for i in range(1, 6)]
    return _cifar(folder, dict.fromkeys(names, n_train // 5) | {"test_batch": n_test}, 10, "labels", seed, protocol)


def cifar100(base: Path, n_train: int = 200, n_test: int = 100, seed: int = 0, protocol: int | None = None) -> Path:
    """train and test under <base>/CIFAR100/cifar-100-python."""
    folder = Path(base) / "CIFAR100" / "cifar-100-python"
    return _cifar(folder, {"train": n_train, "test": n_test}, 100, "fine_labels", seed, protocol)


def _cifar(folder: Path, sizes: dict[str, int], n_classes: int, key: str, seed: int, protocol: int | None) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, n in sizes.items():
        labels = balanced(n, n_classes, rng)
        images = rng.integers(0, 60, (n, 3, 32, 32), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[label % 3, 2 * (label % 10) : 2 * (label % 10) + 8] += 150  # something to learn
        table = {"batch_label": name, key: labels.tolist(), "data": images.reshape(n, 3072)}
        content = python2_pickle(table) if protocol is None else pickle.dumps(table, protocol=protocol)
        (folder / name).write_bytes(content)
    return folder


def python2_pickle(table: dict) -> bytes:
    """A table of strings, integer lists and one uint8 array as Python 2 wrote it: protocol 2 with byte strings."""

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def group(*items: bytes) -> bytes:
        return b"(" + b"".join(items) + b"t"

    def array(value: np.ndarray) -> bytes:
        empty = group(b"cnumpy\nndarray\n", group(integer(0)), text(b"b"))
        kind = b"cnumpy\ndtype\n" + group(text(b"u1"), integer(0), integer(1)) + b"R"
        kind += group(integer(3), text(b"|"), b"NNN", integer(-1), integer(-1), integer(0)) + b"b"
        state = group(integer(1), group(*map(integer, value.shape)), kind, b"\x89", text(value.tobytes()))
        return b"cnumpy.core.multiarray\n_reconstruct\n" + empty + b"R" + state + b"b"

    def any_of(value) -> bytes:
        if isinstance(value, np.ndarray):
            return array(value)
        return text(value.encode()) if isinstance(value, str) else b"](" + b"".join(map(integer, value)) + b"e"

    items = b"".join(text(k.encode()) + any_of(v) for k, v in table.items())
    return b"\x80\x02}(" + items + b"u."


def image_folder(
    root: Path,
    classes: list[str],
    n_train: int = 4,
    n_test: int = 2,
    size: tuple[int, int] = (40, 30),
    seed: int = 0,
    splits: tuple[str, str] = ("train", "test"),
) -> Path:
    """<root>/<split>/<class>/<k>.png of noise with a color of the class; sizes vary a little."""
    rng = np.random.default_rng(seed)
    for split, n in zip(splits, (n_train, n_test), strict=True):
        for number, name in enumerate(classes):
            folder = Path(root) / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for k in range(n):
                pixels = rng.integers(0, 80, (size[1] + k % 3, size[0] + k % 2, 3), dtype=np.uint8)
                pixels[..., number % 3] += 40 * (number % 4)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    return Path(root)


def image_list(path: Path, rows: list[dict]) -> Path:
    """A manifest at `path`, .csv or .jsonl by its ending, of rows with path, label and split."""
    path = Path(path)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def rows_of(root: Path, splits: tuple[str, str] = ("train", "test")) -> list[dict]:
    """Manifest rows for every image that `image_folder` wrote under `root`."""
    found = [p for split in splits for p in sorted((Path(root) / split).rglob("*.png"))]
    return [{"path": p.relative_to(root).as_posix(), "label": p.parent.name, "split": p.parts[-3]} for p in found]
