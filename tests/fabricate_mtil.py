"""Tiny copies of the eleven data sets of MTIL in their published layouts: all classes, as few images as possible."""

import functools
import io
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.fabricate_real import EUROSAT, cars196

FOLDERS = ["Faces", "Faces_easy", "Leopards", "Motorbikes", "accordion", "airplanes", "car_side", "yin_yang"]


def runs_of_a_cut(n_classes: int) -> list[int]:
    """Images per class such that the cut of seed 42 gives each class one of either part, in any case two."""
    for total in range(4 * n_classes, 20 * n_classes):
        order = torch.randperm(total, generator=torch.Generator().manual_seed(42))
        trains = torch.zeros(total, dtype=torch.bool)
        trains[order[: int(0.8 * total)]] = True
        runs, start, flags = [], 0, trains.tolist()
        for k in range(total):
            if len(set(flags[start : k + 1])) == 2:
                runs.append(k + 1 - start)
                start = k + 1
        if len(runs) >= n_classes:
            return [*runs[: n_classes - 1], total - sum(runs[: n_classes - 1])]
    raise AssertionError(f"no cut into {n_classes} classes")


@functools.cache
def jpeg(bright: int, noise: int, mode: str) -> bytes:
    pixels = np.random.default_rng(noise).integers(0, 60, (10, 12, 3), dtype=np.uint8) + bright
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(file, "JPEG", quality=50)
    return file.getvalue()


def picture(path: Path, label: int, seed: int = 0, mode: str = "RGB") -> Path:
    """A noisy JPEG of 12 x 10 pixels with the label in its brightness."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(label % 190, seed % 2, mode))
    return path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def aircraft(base: Path) -> None:
    root = base / "fgvc-aircraft-2013b" / "data"
    names = [f"A{k}-200/{k % 7}" if k % 9 else f"Model {k}" for k in range(100)]
    write(root / "variants.txt", "".join(f"{n}\n" for n in names))
    for part, seed in (("train", 0), ("val", 1), ("test", 2)):
        rows = [(f"{100_000 * (seed + 1) + k:07d}", k) for k in reversed(range(100))]
        write(root / f"images_variant_{part}.txt", "".join(f"{image} {names[k]}\n" for image, k in rows))
        for image, k in rows:
            picture(root / "images" / f"{image}.jpg", k, seed)
    both = [(root / f"images_variant_{part}.txt").read_text() for part in ("train", "val")]
    write(root / "images_variant_trainval.txt", "".join(both))


def caltech101(base: Path) -> None:
    root = base / "caltech101" / "101_ObjectCategories"
    names = sorted([*FOLDERS, *(f"thing_{k:03d}" for k in range(101 - len(FOLDERS)))])
    for k, (name, count) in enumerate(zip(names, runs_of_a_cut(101), strict=True)):
        for number in range(1, count + 1):
            picture(root / name / f"image_{number:04d}.jpg", k, number, mode="L" if number == 1 else "RGB")
    picture(root / "BACKGROUND_Google" / "image_0001.jpg", 0)


def cifar100(base: Path) -> None:
    folder = base / "CIFAR100" / "cifar-100-python"
    folder.mkdir(parents=True)
    for seed, (name, n) in enumerate({"train": 100, "test": 100}.items()):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(100)
        table = {"data": rng.integers(0, 255, (n, 3072), dtype=np.uint8), "fine_labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(table, protocol=2))


def dtd(base: Path) -> None:
    root = base / "dtd" / "dtd"
    for seed, part in enumerate(("train", "val", "test")):
        rows = [f"kind_{k:02d}/kind_{k:02d}_{seed:04d}.jpg" for k in range(47)]
        write(root / "labels" / f"{part}1.txt", "".join(f"{row}\n" for row in rows))
        for k, row in enumerate(rows):
            picture(root / "images" / row, k, seed)


def eurosat(base: Path) -> None:
    for k, (name, count) in enumerate(zip(EUROSAT, runs_of_a_cut(10), strict=True)):
        for number in range(1, count + 1):
            picture(base / "eurosat" / "2750" / name / f"{name}_{number}.jpg", k, number)


def flowers(base: Path) -> None:
    from scipy.io import savemat

    root = base / "flowers-102"
    labels = np.concatenate([np.random.default_rng(k).permutation(102) for k in range(3)])
    for number, label in enumerate(labels, 1):
        picture(root / "jpg" / f"image_{number:05d}.jpg", int(label), number)
    savemat(root / "imagelabels.mat", {"labels": labels[None] + 1})
    ids = np.arange(1, 307)
    savemat(root / "setid.mat", {"trnid": ids[None, :102], "valid": ids[None, 102:204], "tstid": ids[None, 204:]})


def food(base: Path) -> None:
    names = [f"dish_{k:03d}" for k in range(101)]
    for seed, part in enumerate(("train", "test")):
        table = {name: [f"{name}/{1000 + seed}"] for name in reversed(names)}
        write(base / "food-101" / "meta" / f"{part}.json", json.dumps(table))
        for k, name in enumerate(names):
            picture(base / "food-101" / "images" / name / f"{1000 + seed}.jpg", k, seed)


def mnist(base: Path) -> None:
    folder = base / "MNIST" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for stem, n in (("train", 20), ("t10k", 20)):
        labels = np.arange(n, dtype=np.uint8) % 10
        images = np.random.default_rng(n).integers(0, 255, (n, 28, 28), dtype=np.uint8)
        head = struct.pack(">HBBIII", 0, 8, 3, n, 28, 28)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, n) + labels.tobytes())


def pets(base: Path) -> None:
    root = base / "oxford-iiit-pet"
    for seed, part in enumerate(("trainval", "test")):
        rows = [(f"{'big_pet' if k % 2 else 'Small_Pet'}_{k:02d}x_{seed + 1}", k) for k in range(37)]
        lines = [f"{name} {k + 1} {1 + k % 2} 1\n" for name, k in rows]
        write(root / "annotations" / f"{part}.txt", "".join(lines))
        for name, k in rows:
            picture(root / "images" / f"{name}.jpg", k, seed)


def cars(base: Path) -> None:
    cars196(base)


def sun397(base: Path) -> None:
    """Classes below a letter, some nested; the files are made in reverse order."""
    root = base / "SUN397"
    names = sorted(f"/{chr(97 + k % 26)}/place_{k:03d}" + ("/indoor" if k % 5 == 0 else "") for k in range(397))
    write(root / "ClassName.txt", "".join(f"{n}\n" for n in names))
    paths = [root / name[1:] / f"sun_{number:04d}.jpg" for name in names for number in range(1)]
    by_path = sorted(paths, key=lambda p: p.relative_to(base).as_posix())
    counts = dict(zip([p.parent for p in by_path], runs_of_a_cut(397), strict=True))
    for k, folder in reversed([*enumerate(counts)]):
        for number in reversed(range(counts[folder])):
            picture(folder / f"sun_{number:04d}.jpg", k, number)


WRITERS: dict[str, Callable[[Path], None]] = {
    "aircraft": aircraft,
    "caltech101": caltech101,
    "cifar100": cifar100,
    "dtd": dtd,
    "eurosat": eurosat,
    "flowers": flowers,
    "food": food,
    "mnist": mnist,
    "pets": pets,
    "cars": cars,
    "sun397": sun397,
}


def mtil(base: Path, domains: tuple[str, ...] = tuple(WRITERS)) -> Path:
    for domain in domains:
        WRITERS[domain](Path(base))
    return Path(base)


def coop_lists(base: Path, domains: tuple[str, ...]) -> None:
    """split_zhou_*.json over the images that are there: a third each for train, val and test where a class has them."""
    from datasets.utils.mtil_protocol import DOMAINS

    for domain in domains:
        if DOMAINS[domain].coop is None:
            continue
        listed, images = (base / part for part in DOMAINS[domain].coop)
        n = DOMAINS[domain].coop_classes or DOMAINS[domain].n_classes
        table = {"train": [], "val": [], "test": []}
        for part in table:
            for k in reversed(range(n)):
                path = picture(images / "by_list" / f"{part}_{k}.jpg", k)
                table[part].append([path.relative_to(images).as_posix(), k, f"{domain}_kind_{k}"])
        write(listed, json.dumps(table))


FABRICATORS = {
    "mtil": lambda base: mtil(base) and {},
    "xtail": lambda base: (
        mtil(base, ("mnist", "aircraft"))
        and [
            (base / place).mkdir(parents=True, exist_ok=True)
            for place in (
                "caltech101/101_ObjectCategories",
                "dtd/dtd/images",
                "eurosat/2750",
                "flowers-102/jpg",
                "food-101/images",
                "oxford-iiit-pet/images",
                "stanford_cars",
                "SUN397",
            )
        ]
        and coop_lists(base, tuple(WRITERS))
        or {}
    ),
}
