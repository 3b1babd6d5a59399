"""Tiny copies of published image data sets in their real layouts: all classes, one training and one test image each."""

import csv
import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

EUROSAT = [
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
]
ISIC_COLUMNS = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
ISIC = "ISIC2018_Task3_Training"
WNIDS = [f"n{2 * k + 1_000_000:08d}" for k in range(200)]


def picture(path: Path, label: int, seed: int = 0, mode: str = "RGB") -> Path:
    """A noisy JPEG of 12 x 10 pixels with the label in its brightness."""
    pixels = np.random.default_rng((label, seed)).integers(0, 60, (10, 12, 3), dtype=np.uint8) + label % 190
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, quality=50)
    return path


def in_test(name: str) -> bool:
    return int(hashlib.md5(name.encode()).hexdigest(), 16) % 5 == 0


def named_for(part_is_test: bool, pattern: str) -> str:
    """The first name of a pattern that the split by name assigns to the requested part."""
    return next(name for name in map(pattern.format, range(200)) if in_test(name) == part_is_test)


def imagenet_r(base: Path, form: str = "plain") -> Path:
    """<base>/imagenet-r; form: plain folders, folders train and test, or one of the lists yaml and txt."""
    root = Path(base) / "imagenet-r"
    root.mkdir(parents=True)
    preface = [f"line {k} of the preface" for k in range(13)]
    named = [f"{wnid} thing_{k}" for k, wnid in enumerate(WNIDS)]
    (root / "README.txt").write_text("\n".join(preface + named) + "\n")
    rows = {"train": [], "test": []}
    labels = np.random.default_rng(5).permutation(200)
    for number in np.random.default_rng(6).permutation(200):  # not in the order of their names
        for part in rows:
            name = named_for(part == "test", WNIDS[number] + "/art_{}.jpg")
            picture(root / (part if form == "folders" else "") / name, int(number), mode="L" if number == 3 else "RGB")
            rows[part].append((name, int(labels[number])))
    for part, found in rows.items() if form in {"yaml", "txt"} else ():
        if form == "txt":
            (root / f"{part}.txt").write_text("".join(f"{name} {label}\n" for name, label in found))
        else:
            lines = [
                "data:",
                *(f"- data/imagenet-r/{name}" for name, _ in found),
                "targets:",
                *(f"- {k}" for _, k in found),
            ]
            (root / f"imagenet-r_{part}.yaml").write_text("\n".join(lines) + "\n")
    return root


def cars196(base: Path, form: str = "published") -> Path:
    """<base>/stanford_cars with the .mat files, or <base>/cars196 with tensors."""
    names = [f"Maker Model {k} Coupe 2012" for k in range(196)]
    if form == "tensors":
        root = Path(base) / "cars196"
        root.mkdir(parents=True)
        for k, part in enumerate(("train", "test")):
            labels = torch.randperm(196, generator=torch.Generator().manual_seed(k))
            images = labels.to(torch.uint8)[:, None, None, None].expand(-1, 3, 224, 224)  # saved as 196 bytes
            torch.save(images, root / f"{part}_images.pt")
            torch.save(labels, root / f"{part}_labels.pt")
        (root / "class_names.json").write_text(json.dumps({str(k): name for k, name in reversed([*enumerate(names)])}))
        return root
    from scipy.io import savemat

    root = Path(base) / "stanford_cars"
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array(names, dtype=object)[None]})
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    for part, path in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = np.zeros((1, 196), dtype=[(name, object) for name in fields])
        for k, label in enumerate(np.random.default_rng(len(part)).permutation(196)):
            picture(root / f"cars_{part}" / f"{k + 1:05d}.jpg", int(label), len(part))
            rows[0, k] = (1, 1, 9, 9, int(label) + 1, f"{k + 1:05d}.jpg")
        savemat(root / path, {"annotations": rows})
    return root


def cub200(base: Path, form: str = "published") -> Path:
    """<base>/CUB_200_2011 with its four lists, or <base>/CUB200 with object arrays."""
    names = [f"{k + 1:03d}.Painted_Bird_{k + 1}" for k in range(200)]
    if form == "arrays":
        root = Path(base) / "CUB200"
        root.mkdir(parents=True)
        for part in ("train", "test"):
            images = np.empty(200, dtype=object)
            for k in range(200):
                images[k] = np.full((8 + k % 3, 9, 3), k, dtype=np.uint8)
            order = np.random.default_rng(len(part)).permutation(200)
            np.savez(root / f"{part}_data.npz", data=images[order], targets=order, classes=np.array(names), segs=images)
        return root
    root = Path(base) / "CUB_200_2011"
    rows = [(k, part, f"{names[k]}/Bird_{k}_{part}.jpg") for k in range(200) for part in (1, 0)]
    for k, part, name in rows:
        picture(root / "images" / name, k, part)
    listed = [*enumerate(rows, 1)]
    (root / "images.txt").write_text("".join(f"{i} {name}\n" for i, (_, _, name) in listed))
    (root / "image_class_labels.txt").write_text("".join(f"{i} {k + 1}\n" for i, (k, _, _) in listed))
    (root / "train_test_split.txt").write_text("".join(f"{i} {part}\n" for i, (_, part, _) in listed))
    (root / "classes.txt").write_text("".join(f"{k} {name}\n" for k, name in enumerate(names, 1)))
    return root


def eurosat(base: Path, inner: str = "2750") -> Path:
    """<base>/eurosat with split.json, whose first rows are of a late label."""
    root, table = Path(base) / "eurosat", {"train": [], "val": [], "test": []}
    for label in (7, 2, 9, 0, 1, 3, 8, 4, 6, 5):
        for k, part in enumerate(table):
            name = f"{EUROSAT[label]}/{EUROSAT[label]}_{k + 1}.jpg"
            picture(root / inner / name, label, k)
            table[part].append([name, label, f"Kind {EUROSAT[label]}"])
    (root / "split.json").write_text(json.dumps(table))
    return root


def isic(base: Path, form: str = "published") -> Path:
    """<base>/isic with the challenge's files (one row is of NV), or with pickles of float images."""
    root = Path(base) / "isic"
    root.mkdir(parents=True)
    if form == "pickles":
        for part in ("train", "test"):
            images = [np.full((6, 8, 3), (k + 1) / 7, dtype=np.float64) for k in range(6)]
            (root / f"{part}_images.pkl").write_bytes(pickle.dumps(images if part == "test" else np.array(images)))
            (root / f"{part}_labels.pkl").write_bytes(
                pickle.dumps(list(np.arange(6)) if part == "test" else np.arange(6))
            )
        return root
    truth, lesions = io.StringIO(), io.StringIO()
    csv.writer(truth).writerow(["image", *ISIC_COLUMNS])
    csv.writer(lesions).writerow(["image", "lesion_id", "diagnosis_confirm_type"])
    number = 24306
    for kind in range(7):
        for test in (False, True):
            lesion = named_for(test, f"HAM_{kind}{{:06d}}")
            for _ in range(2):  # two images of one lesion
                image, number = f"ISIC_{number:07d}", number + 1
                picture(root / f"{ISIC}_Input" / f"{image}.jpg", kind, number)
                csv.writer(truth).writerow([image, *(float(k == kind) for k in range(7))])
                csv.writer(lesions).writerow([image, lesion, "histopathology"])
    (root / f"{ISIC}_GroundTruth").mkdir()
    (root / f"{ISIC}_GroundTruth" / f"{ISIC}_GroundTruth.csv").write_text(truth.getvalue())
    (root / f"{ISIC}_LesionGroupings.csv").write_text(lesions.getvalue())
    return root


# as FABRICATORS of tests/contract.py: dataset -> what writes its files and returns further flags
FABRICATORS: dict[str, Callable] = {
    "seq-imagenet-r": lambda base: imagenet_r(base) and {},
    "seq-cars196": lambda base: cars196(base) and {},
    "seq-cub200": lambda base: cub200(base) and {},
    "seq-eurosat-rgb": lambda base: eurosat(base) and {},
    "seq-isic": lambda base: isic(base) and {},
}
