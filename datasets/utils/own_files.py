"""What is in an own folder or list: rows, which of them are test images, classes in order, names."""

import hashlib
import os
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from datasets.utils.image_streams import names_of
from datasets.utils.own_list import SUFFIXES, OwnList, Row, read_list
from utils import json_text
from utils.errors import UserError, shown

TEST_SHARE = 0.2


@dataclass(frozen=True)
class OwnFiles:
    """Training and test rows, classes in the order of the stream, and the tasks or domains that a column names."""

    source: Path
    train: list[Row]
    test: list[Row]
    classes: list[str]
    places: list[str]  # empty if no column names tasks
    unused: tuple[str, ...]
    drawn: bool  # the test images were drawn by a hash of their paths

    @property
    def shares_classes(self) -> bool:
        """Whether a class is in several tasks."""
        return len({(row.label, row.place) for row in self.train}) > len(self.classes)


def listed_in(source: Path) -> Path | None:
    """The list that a path means: itself, or data.jsonl or data.csv of a folder."""
    if os.path.isfile(source):  # False for what no path can be
        return source
    return next((path for end in SUFFIXES if os.path.isfile(path := source / f"data{end}")), None)


def gather(source: Path, test_share: float | None) -> OwnFiles:
    """Rows in the order of their classes, the split of the source or one by hash."""
    path = listed_in(source)
    found = read_list(path) if path else read_folder(source)
    has_split = "split" in found.columns
    if has_split and test_share is not None:
        raise UserError(f"--test_share: {source} says which images are for tests; leave the flag out")
    share = TEST_SHARE if test_share is None else test_share
    if not 0 < share < 1:
        raise UserError(f"--test_share {share:g}: it must be between 0 and 1, for example 0.2")
    train, test = two_parts(source, found.rows) if has_split else split_by_hash(source, found.rows, share)
    places = sorted({row.place for row in found.rows} - {""}, key=by_number)
    first: dict[str, tuple] = {}  # task of each class
    for row in train if "task" in found.columns else []:
        first[row.label] = min(first.get(row.label, by_number(row.place)), by_number(row.place))
    classes = sorted({row.label for row in train}, key=lambda name: (first.get(name, ()), by_number(name)))
    refuse_equal_names(source, classes)
    strange = sorted({row.label for row in test} - set(classes))
    if strange:
        raise UserError(
            f"{source}: the test images have class '{strange[0]}', which no training image has; add "
            "training images or remove it"
        )
    for part, rows in (("training", train), ("test", test)):
        for place in sorted(set(places) - {row.place for row in rows}, key=by_number):
            raise UserError(f"{source}: no {part} image of task or domain '{shown(place)}': add some or remove it")
    number = {name: k for k, name in enumerate(classes)}
    train, test = (sorted(rows, key=lambda row: number[row.label]) for rows in (train, test))
    return OwnFiles(source, train, test, classes, places, found.unused, not has_split)


def two_parts(source: Path, rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """By the column split; val is the test set only if there is no other."""
    parts = {name: [row for row in rows if row.split == name] for name in ("train", "test", "val")}
    train, test = parts["train"], parts["test"] or parts["val"]
    if not train or not test:
        raise UserError(f"{source} has no row with split {'test or val' if train else 'train'}: both are needed")
    return train, test


def split_by_hash(source: Path, rows: list[Row], share: float) -> tuple[list[Row], list[Row]]:
    """A path is for tests if its hash falls below `share`, wherever the folder is; each class of a task has at least
    one image of both parts: the ones with the lowest and the highest hash."""
    groups: dict[tuple[str, str], list[tuple[float, Row]]] = {}
    for row in rows:
        groups.setdefault((row.place, row.label), []).append((hashed(row.key), row))
    train, test = [], []
    for (_, label), group in groups.items():
        if len({value for value, _ in group}) < 2:
            raise UserError(
                f"{source}: class '{shown(label)}' has a single image, and --test_share takes one of each class for "
                "tests: add images, or split them in folders train/ and test/"
            )
        low, high = min(value for value, _ in group), max(value for value, _ in group)
        for value, row in group:
            (test if value == low or (value < share and value < high) else train).append(row)
    return train, test


def hashed(key: str) -> float:
    """A number in [0, 1) from a path, the same on every machine."""
    text = unicodedata.normalize("NFC", key.replace(os.sep, "/")).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.md5(text, usedforsecurity=False).digest()[:8], "big") / 2**64


def by_number(name: str) -> tuple:
    """Sorting key: numbers by value, of any length, then names."""
    if not (name.isascii() and name.isdecimal()):
        return 1, 0, "", name
    digits = name.lstrip("0")
    return 0, len(digits), digits, name


def refuse_equal_names(source: Path, classes: list[str]) -> None:
    """Two classes whose names differ in letters that are not shown, or in _ for a space."""
    known: dict[str, str] = {}
    for name in classes:
        if (other := known.setdefault(unicodedata.normalize("NFC", name.replace("_", " ")), name)) != name:
            raise UserError(
                f"{source}: classes {shown(other)!r} and {shown(name)!r} have the same name: rename or merge them"
            )


def read_folder(root: Path) -> OwnList:
    """Rows of <root>/train/<class>/ and <root>/test/<class>/ (or val/), or of <root>/<class>/ without a split."""
    if not root.is_dir():
        raise UserError(
            f"--folder_path {root} does not exist: name a folder with one subfolder per class, or with train/ and "
            "test/, or a .csv or .jsonl list"
        )
    train, test = root / "train", root / "test" if (root / "test").is_dir() else root / "val"
    if not train.is_dir() and not test.is_dir():
        return OwnList(_classes(root, ""), frozenset({"image", "label"}), ())
    for folder, wanted in ((train, "train/"), (test, "test/ or val/")):
        if not folder.is_dir():
            raise UserError(f"{root} has no {wanted}: put one subfolder per class there")
    rows = _classes(train, "train") + _classes(test, "test")
    return OwnList(rows, frozenset({"image", "label", "split"}), ())


def _classes(root: Path, split: str) -> list[Row]:
    rows = []
    for folder in sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")):
        refuse_no_utf8(folder)
        images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMG_EXTENSIONS and p.is_file())
        if not images:
            raise UserError(
                f"class folder {folder} does not contain an image ({' '.join(IMG_EXTENSIONS)}): add some or remove it"
            )
        rows += [Row(path, os.path.relpath(path, root), folder.name, split) for path in images]
    if not rows:
        raise UserError(f"{root} has no class folders: put one subfolder per class there")
    return rows


def refuse_no_utf8(folder: Path) -> None:
    try:
        folder.name.encode()
    except UnicodeEncodeError:
        raise UserError(f"class folder {os.fsencode(folder)!r} has a name that is not UTF-8: rename it") from None


def spoken_names(path: Path | None, classes: list[str]) -> list[str]:
    """Names for CLIP: those of --class_names FILE, {class: name} or lines "class name"; else the class without _."""
    if path is None:
        return [name.replace("_", " ") for name in classes]
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json_text.parse(text) if path.suffix.lower() == ".json" else _named_lines(text)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--class_names {path} cannot be read ({error}): give JSON, or lines of class and name"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(name, str) and name.strip() for name in found.values()):
        raise UserError(f"--class_names {path}: every class needs a text as its name, {{class: name}}")
    missing = [name for name in classes if name not in found]
    if missing:
        raise UserError(
            f"--class_names {path} has no name for class '{shown(missing[0])}' ({len(missing)} of {len(classes)} are "
            "missing): add a line"
        )
    return [found[name].strip() for name in classes]


def _named_lines(text: str) -> dict[str, str]:
    """A tab ends a class name with blanks in it; else the first blank does, as in lists of ImageNet's wnids."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    tabbed = [line.split("\t", 1) for line in lines if "\t" in line]
    if len(tabbed) == len(lines):
        return {name.strip(): spoken.split(",")[0].strip() for name, spoken in tabbed}
    return names_of(lines)


def without(files: OwnFiles, images: set[Path]) -> OwnFiles:
    """The same, some images left out."""
    train, test = ([row for row in rows if row.image not in images] for rows in (files.train, files.test))
    return replace(files, train=train, test=test)
