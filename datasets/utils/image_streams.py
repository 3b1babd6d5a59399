"""Streams over published image sets: rows from torchvision's readers or from folders, and the usual transforms."""

from collections.abc import Callable
from pathlib import Path

from torchvision import transforms as T
from torchvision.datasets.folder import IMG_EXTENSIONS

from datasets.utils.array_files import ImageArrays
from datasets.utils.file_streams import (
    BICUBIC,
    CLIP,
    CROP_AND_FLIP,
    IMAGENET,
    Content,
    FileStream,
    held_out,
)
from datasets.utils.mtil_readers import Rows, read_rows
from datasets.utils.samples import ArraySamples, FileSamples
from utils.errors import UserError

VIT = "timm:vit_base_patch16_224"


class ClipStream(FileStream):
    """CLIP's test transform; crops of at least 80 percent, flips and color jitter in training."""

    MEAN, STD = CLIP
    RESIZE = T.Compose([T.Resize(224, BICUBIC), T.CenterCrop(224)])
    TRANSFORM = T.Compose(
        [
            T.RandomResizedCrop(224, scale=(0.8, 1.0)),
            T.RandomHorizontalFlip(),
            T.ColorJitter(0.2, 0.2, 0.2, 0.1),
            T.ToTensor(),
            T.Normalize(*CLIP),
        ]
    )
    TEST_TRANSFORM = T.Compose([*RESIZE.transforms, T.ToTensor(), T.Normalize(*CLIP)])
    DEFAULTS = {"batch_size": 128, "n_epochs": 20, "backbone": VIT}


class ImageNetStream(FileStream):
    """ImageNet's normalization; random resized crops and flips in training, a central crop of 256 in tests."""

    MEAN, STD = IMAGENET
    TRANSFORM = T.Compose([*CROP_AND_FLIP, T.ToTensor(), T.Normalize(*IMAGENET)])
    TEST_TRANSFORM = T.Compose([*FileStream.RESIZE.transforms, T.ToTensor(), T.Normalize(*IMAGENET)])
    DEFAULTS = {"batch_size": 128, "n_epochs": 30, "backbone": VIT}


class Listed(FileStream):
    """A subclass gives READ(root) -> (training rows, test rows, names); a row is (path, label)."""

    READ: Callable[[Path], tuple[Rows, Rows, list[str]]]

    def read(self, base: Path) -> Content:
        (source, *_), reader = self.FILES, type(self).READ
        root = source.root(base)
        place = root / source.places[0].split("|")[0]
        return read_rows(reader, root, place, self.N_CLASSES, self.absent, self.broken)


def subset(content: Content, kept: list[int]) -> Content:
    """The classes `kept` alone, numbered in that order."""
    label = {raw: number for number, raw in enumerate(kept)}
    parts = []
    for samples in (content.train, content.test):
        rows = [row for row, raw in enumerate(samples.targets.tolist()) if raw in label]
        targets = [label[int(samples.targets[row])] for row in rows]
        if isinstance(samples, ArraySamples):
            parts.append(ArraySamples(samples.data[rows], targets))
        else:
            parts.append(FileSamples([samples.paths[row] for row in rows], targets))
    return Content(*parts, [content.names[raw] for raw in kept])


def as_images(samples: ArraySamples) -> ImageArrays:
    """Images in memory (N, C, H, W) as single ones that a transform may resize."""
    pixels = samples.data.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return ImageArrays(pixels, samples.targets)


def folder_rows(root: Path, suffixes: tuple[str, ...] = IMG_EXTENSIONS) -> list[tuple[str, str]]:
    """(class, path below `root`) of every image of <root>/<class>/**, in the order of bytes."""
    found = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        inner = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
        found += [(folder.name, path.relative_to(root).as_posix()) for path in inner]
    return sorted(found, key=lambda row: (row[0].encode(), row[1].encode()))


def two_parts(root: Path) -> tuple[Path, Path] | None:
    """<root>/train and <root>/test (or val), if both are there."""
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    return None if test is None or not (root / "train").is_dir() else (root / "train", test)


def rows_by_folder(root: Path, whole: Path, n_classes: int | None = None) -> tuple[Rows, Rows, list[str]]:
    """Folders train/ and test/ (or val/) of `root`, a folder per class; else a fifth of `whole` is held out by name.

    With `n_classes`, only that many classes, the first in the order of bytes.
    """
    parts = two_parts(root)
    if parts is None:
        parts, found = (whole, whole), folder_rows(whole)
        halves = [[row for row in found if held_out(row[1]) == test] for test in (False, True)]
    else:
        halves = [folder_rows(part) for part in parts]
    names = sorted({name for name, _ in halves[0] + halves[1]}, key=str.encode)[:n_classes]
    label = {name: number for number, name in enumerate(names)}
    train, test = (
        [(folder / path, label[name]) for name, path in rows if name in label]
        for folder, rows in zip(parts, halves, strict=True)
    )
    return train, test, names


def names_of(lines: list[str]) -> dict[str, str]:
    """wnid -> name, from lines "n01440764 tench, Tinca tinca": the first of several names, blanks for _."""
    pairs = [line.split(maxsplit=1) for line in lines]
    return {pair[0]: pair[1].split(",")[0].strip().replace("_", " ") for pair in pairs if len(pair) == 2}


def need_names(names: dict[str, str], wnids: list[str], source: Path) -> list[str]:
    """The name of each class, or an error that says which one `source` lacks."""
    for wnid in wnids:
        if wnid not in names:
            raise UserError(f"{source} has no name for class {wnid}: add a line or download the file again")
    return [names[wnid] for wnid in wnids]
