"""UPMC Food-101: web images of 101 dishes with the titles of their pages, in 5, 10 or 20 tasks

Wang et al., ICME 2015; as a class-incremental stream in Lee et al., Exemplar Masking, arXiv 2412.09549. Other images
than torchvision's Food101. 67,972 training and 22,716 test images are available (reported).

Files under <base_path>/upmc_food101: images/{train,test}/<class>/<class>_<k>.jpg with one of
- texts/train_titles.csv and texts/test_titles.csv: no header; file name, title, class;
- text.json {file name: title} and split.json {train, val, test: file names}; optional class_idx.json {class: number}.

Choices:
- --phases 5, 10 or 20; 101 classes are not divisible, so the first tasks get one more class.
- The class of a file is its name up to the last underscore. Classes are in the order of class_idx.json, else by name.
- Images without a title are left out and counted, as the paper's authors do; val is used for training.
- A title often names the dish; nothing is removed from it.
"""

import csv
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Literal

from datasets.utils.mm_files import Captioned, CaptionedFiles
from datasets.utils.sources import Source
from utils.errors import UserError


class UpmcFood101(CaptionedFiles):
    NAME = "upmc-food101"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = [11] + [10] * 9
    MOST_CLASSES = 101
    TEMPLATES = ["a photo of {}, a type of food."]
    FILES = (
        Source(
            ("upmc_food101/images", "upmc_food101/texts|upmc_food101/text.json"),
            "https://www.kaggle.com/datasets/gianmarco96/upmcfood101",
            "90,688 images and titles",
            by_hand="fetch kaggle.com/datasets/gianmarco96/upmcfood101 (it requires an account) and put images/ "
            "and texts/ under {base}/upmc_food101",
        ),
    )

    def __init__(self, args: Namespace, phases: Literal[5, 10, 20] = 10):
        super().__init__(args, phases)

    def parts(self, base: Path) -> tuple[Captioned, Captioned, list[str]]:
        root = base / "upmc_food101"
        if not (root / "images").is_dir():
            raise self.absent(root / "images")
        source, rows = self.json_rows(root) if (root / "split.json").is_file() else self.csv_rows(root)
        names = self.classes(root, rows)
        place = {name: number for number, name in enumerate(names)}
        found, lost = [], 0
        for part in ("train", "test"):
            kept = Captioned([], [], [])
            for name, title in rows[part]:
                if not title.strip():
                    lost += 1
                    continue
                kept.texts.append(" ".join(title.split()))
                kept.labels.append(place[class_of(name)])
                kept.paths.append(Path(part, class_of(name), name))
            listed = [(path.as_posix(), label) for path, label in zip(kept.paths, kept.labels, strict=True)]
            kept.paths = self.files(root / "images", listed, source).paths
            found.append(kept)
        if lost:
            warnings.warn(f"{self.NAME}: {lost} images have no title and are left out", stacklevel=2)
        return *found, [name.replace("_", " ") for name in names]

    def json_rows(self, root: Path) -> tuple[Path, dict[str, list[tuple[str, str]]]]:
        titles, split = self.table(root / "text.json"), self.table(root / "split.json")
        try:
            parts = {"train": [*split["train"], *split.get("val", [])], "test": split["test"]}
            rows = {part: [(str(name), str(titles.get(name) or "")) for name in names] for part, names in parts.items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise self.broken(root / "split.json", error) from None
        self.check(root / "split.json", rows)
        return root / "split.json", rows

    def csv_rows(self, root: Path) -> tuple[Path, dict[str, list[tuple[str, str]]]]:
        rows: dict[str, list[tuple[str, str]]] = {}
        for part in ("train", "test"):
            path = root / "texts" / f"{part}_titles.csv"
            if not path.is_file():
                raise self.absent(path)
            rows[part] = []
            try:
                with path.open(newline="", encoding="utf-8-sig") as file:
                    reader = csv.reader(file, strict=True)
                    for row in reader:
                        if not row:
                            continue
                        if len(row) != 3 or class_of(row[0]) != row[2]:
                            raise UserError(
                                f"{path} line {reader.line_num} is not `<class>_<k>.jpg, title, class`: {row[:3]}; "
                                "fix or remove it"
                            )
                        rows[part].append((row[0], row[1]))
            except csv.Error as error:
                raise UserError(f"{path} line {reader.line_num} is not a CSV row ({error}): fix or remove it") from None
            except UnicodeDecodeError as error:
                raise self.broken(path, error) from None
            if not rows[part]:
                raise self.broken(path, "it is empty")
        self.check(root / "texts", rows)
        return root / "texts", rows

    def check(self, source: Path, rows: dict[str, list[tuple[str, str]]]) -> None:
        wrong = [name for part in rows.values() for name, _ in part if not class_of(name) or "/" in name]
        if wrong:
            raise UserError(f"{source}: {wrong[0]} is not named <class>_<k>.jpg; fix or remove it")

    def classes(self, root: Path, rows: dict[str, list[tuple[str, str]]]) -> list[str]:
        names = sorted({class_of(name) for part in rows.values() for name, _ in part})
        listed = root / "class_idx.json"
        if listed.is_file():
            table = self.table(listed)
            if not isinstance(table, dict) or sorted(table) != names or sorted(table.values()) != [*range(len(names))]:
                raise UserError(
                    f"{listed} does not give each of the {len(names)} classes one number from 0 on: fix or remove it"
                )
            names = sorted(names, key=table.__getitem__)
        if len(names) != self.N_CLASSES:
            raise self.broken(root, f"{len(names)} classes, {self.N_CLASSES} are published")
        return names


def class_of(name: str) -> str:
    """ "apple_pie_12.jpg" -> "apple_pie"."""
    return name.rpartition("_")[0]
