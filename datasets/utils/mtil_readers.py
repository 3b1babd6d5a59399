"""Readers of the eleven datasets of MTIL, each in its published layout below one base path.

torchvision reads the lists where it does so without a checksum; CIFAR-100 and MNIST have readers in this package,
and the three .mat files of Flowers are read here. Nothing is downloaded.
"""

import functools
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torchvision import datasets as tv

from datasets.seq_cifar100 import NAMES as CIFAR100_NAMES
from datasets.utils.cifar_files import load_cifar
from datasets.utils.file_streams import Content
from datasets.utils.mnist_files import load_mnist
from datasets.utils.mtil_protocol import CALTECH_NAMES, DOMAINS, EUROSAT_NAMES
from datasets.utils.samples import FileSamples
from utils import json_text
from utils.errors import UserError

SPLIT_SEED, TRAIN_SHARE = 42, 0.8  # of Caltech101, EuroSAT and SUN397, which come without a split
Rows = list[tuple[Path, int]]
LIST_ERRORS = (
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    NotImplementedError,
    EOFError,
    MatReadError,
    zlib.error,
)
COOP_SOURCE = "DATASETS.md of github.com/KaiyangZhou/CoOp links it"


def read_domain(
    name: str,
    stream,
    base: Path,
    split: str,
    absent: Callable[[Path], UserError],
    broken: Callable[[Path, object], UserError],
) -> Content:
    """Both parts of a domain with labels from 0, and its names. `stream` holds the flags of a run."""
    domain = DOMAINS[name]
    if name in {"cifar100", "mnist"}:
        if domain.files.missing(base):
            raise absent(base / domain.place)
        return _arrays(name, stream)
    root = domain.files.root(base)
    read = functools.partial(coop, lists=domain.coop) if split == "coop" and domain.coop else READERS[name]
    return read_rows(read, root, root / domain.place, n_classes_of(name, split), absent, broken)


def read_rows(
    read: Callable[[Path], tuple[Rows, Rows, list[str]]],
    root: Path,
    place: Path,
    n_classes: int,
    absent: Callable[[Path], UserError],
    broken: Callable[[Path, object], UserError],
) -> Content:
    """Both parts and the names from `read(root)`; what it raises for files that are not there or damaged is reported
    in one line. `place` must exist."""
    if not place.is_dir():
        raise absent(place)
    try:
        train, test, names = read(root)
    except FileNotFoundError as error:
        raise absent(Path(error.filename or place)) from None
    except (*LIST_ERRORS, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise broken(place.parent if place.parent != root else place, f"{type(error).__name__}: {error}") from None
    if len(names) != n_classes:
        raise broken(place, f"it has {len(names)} classes, {n_classes} are published")
    return Content(_files(train, n_classes), _files(test, n_classes), [n.replace("_", " ") for n in names])


def n_classes_of(name: str, split: str) -> int:
    domain = DOMAINS[name]
    return domain.coop_classes if split == "coop" and domain.coop_classes else domain.n_classes


def _arrays(name: str, stream) -> Content:
    if name == "mnist":
        parts = [load_mnist(stream.args, stream.NAME, train) for train in (True, False)]
        return Content(*parts, list(tv.MNIST.classes))
    parts = [load_cifar(stream.args, "CIFAR100", stream.NAME, train) for train in (True, False)]
    return Content(*parts, list(CIFAR100_NAMES))


def _files(rows: Rows, n_classes: int) -> FileSamples:
    """Samples of a list whose files all exist and whose labels are in range."""
    for path, label in rows:
        if not 0 <= label < n_classes:
            raise UserError(f"{path} has label {label} of {n_classes} classes: fix the list that names it")
        if not path.is_file():
            raise UserError(f"{path} is listed but does not exist: restore it or unpack the archive again")
    return FileSamples([path for path, _ in rows], [label for _, label in rows])


def cut(rows: Rows) -> tuple[Rows, Rows]:
    """ZSCL's random split of a dataset without one: training is the first 80 percent of permutation 42."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    n_train = int(TRAIN_SHARE * len(rows))
    return [rows[k] for k in order[:n_train]], [rows[k] for k in order[n_train:]]


def _paired(paths: Iterable, labels: Iterable) -> Rows:
    return [(Path(path), int(label)) for path, label in zip(paths, labels, strict=True)]


def listed(reader: type, parts: tuple[str, str], paths: str) -> Callable[[Path], tuple[Rows, Rows, list[str]]]:
    """A dataset of torchvision with published parts; `paths` is the attribute that holds them."""

    def read(base: Path) -> tuple[Rows, Rows, list[str]]:
        train, test = (reader(str(base), split=part) for part in parts)
        return (*(_paired(getattr(s, paths), s._labels) for s in (train, test)), list(train.classes))

    return read


def _cars(base: Path) -> tuple[Rows, Rows, list[str]]:
    train, test = (tv.StanfordCars(str(base), split=part) for part in ("train", "test"))
    return [(Path(p), int(c)) for p, c in train._samples], [(Path(p), int(c)) for p, c in test._samples], train.classes


def _caltech(base: Path) -> tuple[Rows, Rows, list[str]]:
    found = tv.Caltech101(str(base))
    root = base / DOMAINS["caltech101"].place
    paths = [
        root / found.categories[label] / f"image_{number:04d}.jpg"
        for number, label in zip(found.index, found.y, strict=True)
    ]
    names = [CALTECH_NAMES.get(folder, folder) for folder in found.categories]
    return (*cut(_paired(paths, found.y)), names)


def _eurosat(base: Path) -> tuple[Rows, Rows, list[str]]:
    found = tv.EuroSAT(str(base))
    return (*cut([(Path(p), c) for p, c in found.samples]), [EUROSAT_NAMES[folder] for folder in found.classes])


def _sun397(base: Path) -> tuple[Rows, Rows, list[str]]:
    """torchvision lists in the order of the file system: the paths are sorted to make the split portable."""
    found = tv.SUN397(str(base))
    rows = sorted(_paired(found._image_files, found._labels), key=lambda row: row[0].relative_to(base).as_posix())
    return (*cut(rows), found.classes)


def _flowers(base: Path) -> tuple[Rows, Rows, list[str]]:
    root = base / "flowers-102"
    labels = loadmat(root / "imagelabels.mat")["labels"].ravel().astype(int) - 1
    parts = loadmat(root / "setid.mat")

    def rows(key: str) -> Rows:
        numbers = np.asarray(parts[key]).ravel().astype(int)  # of images, from 1
        return _paired((root / "jpg" / f"image_{k:05d}.jpg" for k in numbers), labels[numbers - 1])

    return rows("trnid"), rows("tstid"), list(tv.Flowers102.classes)


def coop(base: Path, lists: tuple[str, str]) -> tuple[Rows, Rows, list[str]]:
    """The train and test rows [path, label, name] of a list of Zhou et al. (CoOp); its validation part is not used."""
    listed, images = lists
    try:
        table = json_text.parse((base / listed).read_text(encoding="utf-8"))
        parts = [
            [(str(path), int(label), str(name)) for path, label, name in table[part]] for part in ("train", "test")
        ]
    except FileNotFoundError:
        raise UserError(f"{base / listed} does not exist: {COOP_SOURCE}; put that file there") from None
    except (*LIST_ERRORS, OSError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"{base / listed} is truncated or corrupt ({reason}): {COOP_SOURCE}; download it again"
        ) from None
    for path, _, _ in (*parts[0], *parts[1]):
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise UserError(f"{base / listed} lists {path}, which is outside {base / images}: fix or remove that row")
    pairs = sorted({(label, name) for _, label, name in (*parts[0], *parts[1])})
    if [label for label, _ in pairs] != list(range(len(pairs))):
        raise ValueError("not every label has exactly one name")
    train, test = ([(base / images / path, label) for path, label, _ in rows] for rows in parts)
    return train, test, [name for _, name in pairs]


READERS = {
    "aircraft": listed(tv.FGVCAircraft, ("train", "test"), "_image_files"),
    "caltech101": _caltech,
    "dtd": listed(tv.DTD, ("train", "test"), "_image_files"),
    "eurosat": _eurosat,
    "flowers": _flowers,
    "food": listed(tv.Food101, ("train", "test"), "_image_files"),
    "pets": listed(tv.OxfordIIITPet, ("trainval", "test"), "_images"),
    "cars": _cars,
    "sun397": _sun397,
}
