"""Tiny datasets in the true on-disk layouts, so that the real readers run without a download."""

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


def cifar10(base: Path, n_train: int = 100, n_test: int = 40, seed: int = 0, protocol: int = 2) -> Path:
    """data_batch_1..5 and test_batch under <base>/CIFAR10/cifar-10-batches-py."""
    folder = Path(base) / "CIFAR10" / "cifar-10-batches-py"
    names = [f"data_batch_{i}" for i in range(1, 6)]
    return _cifar(folder, dict.fromkeys(names, n_train // 5) | {"test_batch": n_test}, 10, "labels", seed, protocol)


def cifar100(base: Path, n_train: int = 200, n_test: int = 100, seed: int = 0, protocol: int = 2) -> Path:
    """train and test under <base>/CIFAR100/cifar-100-python."""
    folder = Path(base) / "CIFAR100" / "cifar-100-python"
    return _cifar(folder, {"train": n_train, "test": n_test}, 100, "fine_labels", seed, protocol)


def _cifar(folder: Path, sizes: dict[str, int], n_classes: int, key: str, seed: int, protocol: int) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, n in sizes.items():
        labels = balanced(n, n_classes, rng)
        images = rng.integers(0, 60, (n, 3, 32, 32), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[label % 3, 2 * (label % 10) : 2 * (label % 10) + 8] += 150  # something to learn
        table = {"batch_label": name, key: labels.tolist(), "data": images.reshape(n, 3072)}
        (folder / name).write_bytes(pickle.dumps(table, protocol=protocol))
    return folder


def image_folder(
    root: Path, classes: list[str], n_train: int = 4, n_test: int = 2, size: tuple[int, int] = (40, 30), seed: int = 0,
    splits: tuple[str, str] = ("train", "test"),
) -> Path:  # fmt: skip
    """<root>/<split>/<class>/<k>.png of noise with a colour of the class; sizes vary a little."""
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
