"""Any folder of images, or a CSV or JSONL list of them, split into tasks by class"""

import csv
import os
import unicodedata
from argparse import Namespace
from pathlib import Path

from torchvision import transforms as T
from torchvision.datasets.folder import IMG_EXTENSIONS

from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.samples import FileSamples
from utils import json_text
from utils.errors import UserError, shown
from utils.free_memory import require
from utils.settings import option

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
BICUBIC = T.InterpolationMode.BICUBIC
Images = dict[str, list[Path]]  # class -> images


class SequentialFolder(ContinualDataset):
    """`folder_path` is a folder with train/<class>/ and test/<class>/ (or val/), or a file with path, label, split.

    Classes are ordered by name, numbers by value; the first tasks get one more class if the count is not divisible.
    """

    NAME = "seq-folder"
    SETTING = "class-il"
    MEAN, STD = MEAN, STD
    DEFAULTS = {"batch_size": 32, "n_epochs": 10, "backbone": "resnet18"}

    def __init__(self, args: Namespace, folder_path: Path, n_tasks: int = 5, image_size: int = 224):
        source = Path(folder_path).expanduser()
        train, test = read_list(source) if source.is_file() else read_folder(source)
        classes = sorted(train, key=by_number)
        refuse_equal_names(source, classes)
        strange = sorted(set(test) - set(train))
        if strange:
            raise UserError(
                f"{source}: the test images have class '{strange[0]}', which no training image has; add "
                "training images or remove it"
            )
        if not 1 <= n_tasks <= len(classes):
            raise UserError(
                f"--n_tasks {n_tasks} does not fit the {len(classes)} classes of {source}: give 1 to {len(classes)}"
            )
        sizes = [flag for flag in ("first_classes", "classes_per_task") if option(args, flag)]
        if sizes and n_tasks != 5:
            raise UserError(f"--n_tasks and --{sizes[0]} both set the tasks of {source}: use one")
        each, rest = divmod(len(classes), n_tasks)
        if image_size < 1:
            raise UserError(f"--image_size {image_size}: it must be at least 1")
        require(2 * 3 * 4 * image_size**2, f"one image of --image_size {image_size}, augmented and plain,", "lower it")
        self.N_TASKS = n_tasks
        self.N_CLASSES_PER_TASK = [each + 1] * rest + [each] * (n_tasks - rest) if rest else each
        self.SIZE = (image_size, image_size)
        self.CLASS_NAMES = [name.replace("_", " ") for name in classes]
        self.resize = T.Compose([T.Resize(image_size, BICUBIC), T.CenterCrop(image_size)])
        plain = [T.ToTensor(), T.Normalize(MEAN, STD)]
        self.TRANSFORM = T.Compose(
            [T.RandomResizedCrop(image_size, interpolation=BICUBIC), T.RandomHorizontalFlip(), *plain]
        )
        self.TEST_TRANSFORM = T.Compose([self.resize, *plain])
        self._files = {True: self._samples_of(train, classes), False: self._samples_of(test, classes)}
        super().__init__(args)

    @staticmethod
    def _samples_of(images: Images, classes: list[str]) -> FileSamples:
        rows = [(path, label) for label, name in enumerate(classes) for path in images.get(name, [])]
        return FileSamples([path for path, _ in rows], [label for _, label in rows])

    def load(self, train: bool) -> FileSamples:
        return self._files[train]

    def get_transform(self) -> T.Compose:
        return T.Compose([T.ToPILImage(), self.TRANSFORM])

    def get_data_loaders(self):
        loaders = super().get_data_loaders()
        self.train_loader.dataset.not_aug_resize = self.resize
        return loaders


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


def read_folder(root: Path) -> tuple[Images, Images]:
    """Training and test images by class, from <root>/train/<class>/ and <root>/test/<class>/, or val/."""
    if not root.is_dir():
        raise UserError(
            f"--folder_path {root} does not exist: name a folder with train/ and test/, or a .csv or .jsonl list"
        )
    train, test = root / "train", root / "test" if (root / "test").is_dir() else root / "val"
    for folder, wanted in ((train, "train/"), (test, "test/ or val/")):
        if not folder.is_dir():
            raise UserError(f"{root} has no {wanted}: put one subfolder per class there")
    return _classes(train), _classes(test)


def _classes(root: Path) -> Images:
    found = {}
    for folder in sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")):
        refuse_no_utf8(folder)
        found[folder.name] = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMG_EXTENSIONS and p.is_file())
        if not found[folder.name]:
            raise UserError(
                f"class folder {folder} does not contain an image ({' '.join(IMG_EXTENSIONS)}): add some or remove it"
            )
    if not found:
        raise UserError(f"{root} has no class folders: put one subfolder per class there")
    return found


def refuse_no_utf8(folder: Path) -> None:
    try:
        folder.name.encode()
    except UnicodeEncodeError:
        raise UserError(f"class folder {os.fsencode(folder)!r} has a name that is not UTF-8: rename it") from None


def read_list(source: Path) -> tuple[Images, Images]:
    """Training and test images by class, from the rows of a file; relative paths start at the file's folder."""
    parts: dict[str, Images] = {"train": {}, "test": {}, "val": {}}
    for line, row in _rows(source):
        missing = [
            name for name in ("path", "label", "split") if str(row.get(name) or "").strip() == "" and row.get(name) != 0
        ]
        if missing:
            raise UserError(
                f"{source} line {line}: no value for {', '.join(missing)}; every row needs path, label and split"
            )
        path, label, split = (str(row[name]).strip() for name in ("path", "label", "split"))
        if split not in parts:
            raise UserError(f"{source} line {line}: split '{split}' is not one of train, test, val")
        if not os.path.isabs(path) and os.path.normpath(path).split(os.sep)[0] == "..":
            raise UserError(
                f"{source} line {line}: {shown(path)} is outside the folder of the list; "
                "move the image or give its full path"
            )
        if not os.path.isfile(source.parent / path):
            raise UserError(f"{source} line {line}: image {source.parent / path} does not exist; fix or remove the row")
        parts[split].setdefault(label, []).append(source.parent / path)
    train, test = parts["train"], parts["test"] or parts["val"]
    if not train or not test:
        raise UserError(f"{source} has no row with split {'test or val' if train else 'train'}: both are needed")
    return train, test


def _rows(source: Path):
    """(line number, row) of a .csv with a header line, or of a .jsonl with one object per line."""
    if source.suffix.lower() not in {".csv", ".jsonl"}:
        raise UserError(f"--folder_path {source} is neither a folder nor a .csv or .jsonl list")
    line = 1
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            if source.suffix.lower() == ".csv":
                reader = csv.DictReader(file, strict=True)
                absent = [n for n in ("path", "label", "split") if n not in (reader.fieldnames or [])]
                if absent:
                    raise UserError(
                        f"{source} line 1: no column {', '.join(absent)}; the header must name path, label, split"
                    )
                for row in reader:
                    line = reader.line_num
                    yield line, row
                return
            for line, text in enumerate(file, 1):
                if text.strip():
                    row = json_text.parse(text)
                    if not isinstance(row, dict):
                        raise ValueError("not an object with path, label and split")
                    yield line, row
    except (csv.Error, ValueError, OSError) as error:
        raise UserError(f"{source} cannot be read at or after line {line} ({error}): fix that row") from None
