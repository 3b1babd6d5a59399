"""What streams over published image files share: lists, a split by file name, 224-pixel views, checked counts."""

import hashlib
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from torchvision import transforms as T

from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.fetch import absent, base_path, broken
from datasets.utils.samples import FileSamples, Samples
from utils.errors import UserError

BICUBIC = T.InterpolationMode.BICUBIC
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, standard deviation
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CROP_AND_FLIP = [T.RandomResizedCrop(224, interpolation=BICUBIC), T.RandomHorizontalFlip()]


@dataclass
class Content:
    """What is on disk: both parts with raw labels, and the names in the order of the labels."""

    train: Samples
    test: Samples
    names: list[str]


class FileStream(ContinualDataset):
    """A subclass declares its FILES and writes `read(base)`; its files are read when first asked for."""

    SIZE = (224, 224)
    RESIZE = T.Compose([T.Resize((256, 256), BICUBIC), T.CenterCrop(224)])  # of an image without augmentation
    N_IMAGES: int | None = None  # published, training and test

    def read(self, base: Path) -> Content:
        raise NotImplementedError(f"{type(self).__name__} defines no read()")

    @cached_property
    def content(self) -> Content:
        with self.as_published():
            content = self.read(base_path(self.args))
        found = len(content.train) + len(content.test)
        if self.N_IMAGES not in (None, found):
            warnings.warn(
                f"{self.NAME}: {found} images on disk, {self.N_IMAGES} are published; scores are not comparable",
                stacklevel=2,
            )
        return content

    def load(self, train: bool) -> Samples:
        return self.content.train if train else self.content.test

    def get_class_names(self) -> list[str]:
        if self.CLASS_NAMES is None:
            names = self.content.names
            if len(names) != self.n_published:
                raise UserError(
                    f"{self.NAME}: {len(names)} class names on disk, the stream has {self.n_published}; "
                    "download the files again"
                )
            self.CLASS_NAMES = names
        return super().get_class_names()

    def get_data_loaders(self):
        loaders = super().get_data_loaders()
        self.train_loader.dataset.not_aug_resize = self.RESIZE
        return loaders

    def absent(self, path: Path) -> UserError:
        return absent(path, self.NAME, self.FILES[0].host, self.FILES[0].amount, base_path(self.args))

    def broken(self, path: Path, reason: object) -> UserError:
        return broken(path, self.NAME, reason, base_path(self.args))

    def lines(self, path: Path) -> list[str]:
        """Lines of a text file that are not blank."""
        if not path.is_file():
            raise self.absent(path)
        try:
            return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (UnicodeDecodeError, OSError) as error:
            raise self.broken(path, error) from None

    def files(self, root: Path, rows: list[tuple[str, int]], source: Path) -> FileSamples:
        """Images (path below `root`, label) that `source` lists; all must exist inside the folder."""
        paths = []
        for name, label in rows:
            parts = PurePosixPath(name)
            if parts.is_absolute() or ".." in parts.parts:
                raise UserError(f"{source} lists {name}, which is outside {root}: fix or remove that row")
            if not 0 <= label < self.N_CLASSES:
                raise UserError(
                    f"{source} gives {name} label {label}; there are {self.N_CLASSES} classes: fix that row"
                )
            if not (root / parts).is_file():
                raise UserError(
                    f"{source} lists {root / parts}, which does not exist: restore it or unpack the archive again"
                )
            paths.append(root / parts)
        return FileSamples(paths, [label for _, label in rows])


def held_out(name: str) -> bool:
    """Whether a file (or a group of files) is a test one: a fifth of all names by md5, the same on every machine."""
    return int(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), 16) % 5 == 0


def read_split_list(lines: list[str]) -> list[tuple[str, int | None]]:
    """(path, label) rows of a list: lines of `path [label]`, or yaml with `data:` and `targets:` lists.

    Only `- value` items are recognized; nothing in the file is evaluated.
    """
    if not any(re.fullmatch(r"(data|targets):.*", line) for line in lines):
        pairs = [re.fullmatch(r"(.+?)(?:[\s,]+(\d+))?", line).groups() for line in lines]
        return [(path, None if label is None else int(label)) for path, label in pairs]
    columns: dict[str, list[str]] = {"data": [], "targets": []}
    column = None
    for line in lines:
        if line in {"data:", "targets:"}:
            column = columns[line[:-1]]
        elif line.startswith("- ") and column is not None:
            column.append(line[2:].strip().strip("'\""))
        else:
            raise ValueError(f"line '{line[:60]}' is neither 'data:', 'targets:' nor an item '- value'")
    if len(columns["data"]) != len(columns["targets"]):
        raise ValueError(f"{len(columns['data'])} paths but {len(columns['targets'])} targets")
    return [(path, int(label)) for path, label in zip(columns["data"], columns["targets"], strict=True)]
