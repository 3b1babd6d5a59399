"""Tiny copies of published image sets, for the streams over one set and over domains: all classes, few images each."""

import csv
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests import fabricate, fabricate_mtil
from tests.fabricate_mtil import picture, write
from tests.fabricate_real import cars196, eurosat, imagenet_r, named_for

WNIDS = [f"n{k + 1_000_000:08d}" for k in range(200)]
PLANTS = """Apple___Apple_scab Apple___Black_rot Apple___Cedar_apple_rust Apple___healthy Blueberry___healthy
Cherry_(including_sour)___Powdery_mildew Cherry_(including_sour)___healthy Corn_(maize)___Cercospora_leaf_spot
Corn_(maize)___Common_rust_ Corn_(maize)___Northern_Leaf_Blight Corn_(maize)___healthy Grape___Black_rot Grape___Esca
Grape___Leaf_blight Grape___healthy Orange___Haunglongbing Peach___Bacterial_spot Peach___healthy
Pepper,_bell___Bacterial_spot Pepper,_bell___healthy Potato___Early_blight Potato___Late_blight Potato___healthy
Raspberry___healthy Soybean___healthy Squash___Powdery_mildew Strawberry___Leaf_scorch Strawberry___healthy
Tomato___Bacterial_spot Tomato___Early_blight Tomato___Late_blight Tomato___Leaf_Mold Tomato___Septoria_leaf_spot
Tomato___Spider_mites Tomato___Target_Spot Tomato___Tomato_Yellow_Leaf_Curl_Virus Tomato___Tomato_mosaic_virus
Tomato___healthy""".split()


@functools.cache
def written_once(name: str) -> tuple[tempfile.TemporaryDirectory, Path]:
    """Files of a domain of MTIL that several streams read."""
    folder = tempfile.TemporaryDirectory(prefix="fabricated_")
    fabricate_mtil.WRITERS[name](Path(folder.name))
    return folder, next(Path(folder.name).iterdir())


def linked(*names: str) -> Callable[[Path], dict]:
    """A fabricator that links such files."""

    def make(base: Path) -> dict:
        for name in names:
            place = written_once(name)[1]
            (base / place.name).symlink_to(place)
        return {}

    return make


def svhn(base: Path) -> Path:
    from scipy.io import savemat

    folder = base / "svhn"
    folder.mkdir()
    for part, n in (("train", 30), ("test", 20)):
        labels = np.random.default_rng(n).permutation(n) % 10
        images = np.random.default_rng(n).integers(0, 60, (32, 32, 3, n), dtype=np.uint8) + 15 * labels.astype(np.uint8)
        savemat(folder / f"{part}_32x32.mat", {"X": images, "y": np.where(labels == 0, 10, labels)[:, None]})
    return folder


def gtsrb(base: Path) -> Path:
    root = base / "gtsrb"
    for k in range(43):
        for place in (f"Training/{k:05d}/00000_00000.ppm", f"Final_Test/Images/{k:05d}.ppm"):
            path = root / "GTSRB" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 10), (4 * k, 90, 30)).save(path)
    rows = "".join(f"{k:05d}.ppm;12;10;1;1;9;9;{k}\n" for k in reversed(range(43)))
    write(root / "GT-final_test.csv", "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n" + rows)
    return root


def resisc45(base: Path, form: str = "txt") -> Path:
    """Classes, and the lists of the form: txt (file names), yaml (Mammoth's), or none."""
    root = base / "NWPU-RESISC45"
    names = ["airplane", *(f"land_{k:02d}" for k in range(44))]
    rows = {"train": [], "test": []}
    for k, name in reversed([*enumerate(names)]):
        for part, number in (("train", 700), ("test", 1)):
            picture(root / name / f"{name}_{number:03d}.jpg", k)
            rows[part].append(f"{name}_{number:03d}.jpg")
        if form == "none":
            for test in (False, True):
                picture(root / named_for(test, f"{name}/{name}_{{}}.jpg"), k)
    for part, found in rows.items() if form != "none" else ():
        if form == "txt":
            write(root / f"resisc45-{part}.txt", "".join(f"{name}\n" for name in found))
        else:
            items = [f"- {name.rsplit('_', 1)[0]}/{name}" for name in found]
            labels = [f"- {names.index(name.rsplit('_', 1)[0])}" for name in found]
            write(root / f"resisc45_{part}.yaml", "\n".join(["data:", *items, "targets:", *labels]))
    return root


def by_name(root: Path, folders: list[str], pattern: str = "img_{}.jpg", prefix: str = "") -> Path:
    """A training and a test image of each folder under the split by name, whose names begin with `prefix`."""
    for k, folder in enumerate(folders):
        for test in (False, True):
            name = named_for(test, prefix + f"{folder}/{pattern}").removeprefix(prefix)
            picture(root / name, k, int(test))
    return root


def cropdisease(base: Path, form: str = "folders") -> Path:
    root = base / "cropdisease"
    if form == "folders":
        return by_name(root, PLANTS)
    for part in ("train", "test"):
        for k in range(35):
            picture(root / "images" / f"{part}_{k}.jpg", k)
        table = {"data": [f"{part}_{k}.jpg" for k in reversed(range(35))], "labels": [*reversed(range(35))]}
        write(root / f"{part}.json", json.dumps(table))
    return root


def chestx(base: Path) -> Path:
    root, number = base / "chestx", 0
    rows, lists = [], {"train_val_list.txt": [], "test_list.txt": []}
    findings = ["Cardiomegaly", "Consolidation", "Edema", "Fibrosis", "Pleural_Thickening", "Pneumothorax"]
    for k, finding in enumerate([*findings, "No Finding", "Cardiomegaly|Effusion"]):
        for part in lists:
            number += 1
            name = f"{number:08d}_000.png"
            folder = root / f"images_{1 + number % 2:03d}" / "images"
            folder.mkdir(parents=True, exist_ok=True)
            gray = ("LA", (12, 10), (9 * k, 255)) if number == 1 else ("L", (12, 10), 9 * k)
            Image.new(*gray).save(folder / name)
            rows.append([name, finding, str(number), "058Y"])
            lists[part].append(name)
    with open(root / "Data_Entry_2017.csv", "w", newline="") as file:
        csv.writer(file).writerows([["Image Index", "Finding Labels", "Patient ID", "Patient Age"], *rows])
    for part, names in lists.items():
        write(root / part, "".join(f"{name}\n" for name in names))
    return root


def mit67(base: Path) -> Path:
    root = base / "MIT67"
    names = [f"room_{k:02d}" for k in range(67)]
    for part, seed in (("Train", 0), ("Test", 1)):
        rows = [f"{name}/{part}_{seed}.jpg" for name in reversed(names)]
        for k, row in enumerate(rows):
            picture(root / "Images" / row, 66 - k, seed)
        write(root / f"{part}Images.txt", "\n".join(rows))
    return root


def tinyimg(base: Path, form: str = "published") -> Path:
    if form == "arrays":
        root = base / "TINYIMG" / "processed"
        root.mkdir(parents=True)
        for part in ("train", "val"):
            for number in range(1, 21):
                labels = np.arange(10) + 10 * (number - 1)
                images = np.broadcast_to(
                    ((labels - 0.25).clip(0) / 255).astype(np.float32)[:, None, None, None], (10, 64, 64, 3)
                )
                np.save(root / f"x_{part}_{number:02d}.npy", images)
                np.save(root / f"y_{part}_{number:02d}.npy", labels)
        return root
    root = base / "tiny-imagenet-200"
    order = [WNIDS[k] for k in np.random.default_rng(3).permutation(200)]
    write(root / "wnids.txt", "\n".join(order))
    write(root / "words.txt", "".join(f"{wnid}\tthing_{k}, other word\n" for k, wnid in enumerate(WNIDS)))
    rows = []
    for k, wnid in enumerate(WNIDS):
        mode = "L" if k == 5 else "RGB"
        for path in (root / "train" / wnid / "images" / f"{wnid}_0.JPEG", root / "val" / "images" / f"val_{k}.JPEG"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, (64, 64), k if mode == "L" else (k, k, k)).save(path, "JPEG")
        rows.append(f"val_{k}.JPEG\t{wnid}\t0\t0\t9\t9\n")
    write(root / "val" / "val_annotations.txt", "".join(rows))
    return root


def imagenet(base: Path, n_classes: int = 102) -> Path:
    root = base / "imagenet"
    for k, wnid in enumerate(WNIDS[:n_classes]):
        picture(root / "train" / wnid / f"{wnid}_7.JPEG", k)
        picture(root / "val" / wnid / f"ILSVRC2012_val_{k:08d}.JPEG", k, 1)
    write(root / "classnames.txt", "".join(f"{wnid} thing_{k}, other\n" for k, wnid in enumerate(WNIDS)))
    return root


def imagenet_a(base: Path) -> Path:
    return imagenet_r(base).rename(base / "imagenet-a")


def objectnet(base: Path) -> Path:
    """Two classes more than are used; the border is red."""
    root = base / "objectnet-1.0"
    for k in reversed(range(202)):
        for test in (False, True):
            path = root / "images" / named_for(test, f"object_{k:03d}/{{}}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((10, 12, 3), (255, 0, 0), dtype=np.uint8)
            pixels[2:-2, 2:-2] = k
            Image.fromarray(pixels).save(path)
    return root


def ucf101(base: Path, form: str = "list") -> Path:
    root = base / "ucf101"
    names = [f"Do{chr(65 + k // 26)}x{chr(65 + k % 26)}y" for k in range(101)]
    table = {"train": [], "val": [], "test": []}
    for k, name in enumerate(names):
        for part in table:
            if form == "list":
                path = picture(root / "UCF-101-midframes" / name / f"v_{name}_{part}.jpg", k)
                table[part].append([f"{name}/{path.name}", k, name])
            else:
                picture(root / part / name / f"v_{name}.jpg", k)
    if form == "list":
        write(root / "split_zhou_UCF101.json", json.dumps(table))
    return root


def eight(base: Path) -> dict:
    linked("cars", "dtd", "mnist", "sun397")(base)
    eurosat(base), gtsrb(base), resisc45(base), svhn(base)
    return {}


def domainnet(base: Path) -> Path:
    """All classes in the training list of the first domain, three in every other list."""
    root = base / "domainnet"
    for d, domain in enumerate(("clipart", "infograph", "painting", "quickdraw", "real", "sketch")):
        for part in ("train", "test"):
            count = 345 if (domain, part) == ("clipart", "train") else 3
            rows = [(f"{domain}/kind_{k:03d}/{domain}_{part}_{k}.jpg", k) for k in range(count)]
            for path, k in rows:
                picture(root / path, 20 * d + k % 9)
            write(root / f"{domain}_{part}.txt", "".join(f"{path} {k}\n" for path, k in rows))
    return root


def office_home(base: Path) -> Path:
    root = base / "office-home"
    for domain in ("Art", "Clipart", "Product", "Real World"):
        for k in range(65):
            picture(root / domain / f"Thing_{k:02d}" / "00001.jpg", k)
    return root


def core50(base: Path) -> Path:
    root = base / "core50_128x128"
    for session in range(1, 12):
        for k in range(50):
            picture(root / f"s{session}" / f"o{k + 1}" / f"C_{session:02d}_{k + 1:02d}_000.png", 10 * session + k)
    return root


def cddb(base: Path) -> Path:
    root = base / "cddb"
    for d, domain in enumerate(("gaugan", "biggan", "wild", "whichfaceisreal", "san")):
        for part in ("train", "val"):
            for k, folder in enumerate(("0_real", "1_fake")):
                picture(root / domain / part / ("cat" if domain == "wild" else ".") / folder / "7.png", 20 * d + k)
    return root


# as FABRICATORS of tests/contract.py
FABRICATORS: dict[str, Callable] = {
    "seq-aircraft": linked("aircraft"),
    "seq-food101": linked("food"),
    "seq-sun397": linked("sun397"),
    "seq-sun300": linked("sun397"),
    "seq-caltech101": linked("caltech101"),
    "seq-flowers": linked("flowers"),
    "seq-pets": linked("pets"),
    "seq-dtd": linked("dtd"),
    "seq-cars100": lambda base: cars196(base) and {},
    "seq-cifar100-224": lambda base: fabricate.cifar100(base, 100, 100) and {},
    "seq-cifar10-224": lambda base: fabricate.cifar10(base, 100, 20) and {},
    "seq-svhn": lambda base: svhn(base) and {},
    "seq-gtsrb": lambda base: gtsrb(base) and {},
    "seq-resisc45": lambda base: resisc45(base) and {},
    "seq-cropdisease": lambda base: cropdisease(base) and {},
    "seq-chestx": lambda base: chestx(base) and {},
    "seq-mit67": lambda base: mit67(base) and {},
    "seq-tinyimg": lambda base: tinyimg(base) and {},
    "seq-imagenet100": lambda base: imagenet(base) and {},
    "seq-imagenet-a": lambda base: imagenet_a(base) and {},
    "seq-objectnet": lambda base: objectnet(base) and {},
    "seq-ucf101": lambda base: ucf101(base) and {},
    "seq-8vision": eight,
    "domainnet": lambda base: domainnet(base) and {},
    "office-home": lambda base: office_home(base) and {},
    "core50": lambda base: core50(base) and {},
    "cddb": lambda base: cddb(base) and {},
}
