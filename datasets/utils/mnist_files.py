"""MNIST from its four idx files, and its versions with a domain per task."""

from argparse import Namespace
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.datasets.mnist import read_image_file, read_label_file

from datasets.utils.continual_dataset import ContinualDataset, store_masked_loaders
from datasets.utils.fetch import absent, base_path, broken
from datasets.utils.samples import ArraySamples
from datasets.utils.sources import SOURCES

CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEMPLATES = ['a photo of the number: "{}".']


def load_mnist(args: Namespace, dataset: str, train: bool) -> ArraySamples:
    """Digits as uint8 (N, 1, 28, 28) from <base_path>/MNIST/MNIST/raw, or <base_path>/MNIST/raw."""
    base, stem = base_path(args), "train" if train else "t10k"
    folders = [base / "MNIST" / "MNIST" / "raw", base / "MNIST" / "raw"]
    folder = next((f for f in folders if (f / f"{stem}-images-idx3-ubyte").is_file()), folders[0])
    images = _read(read_image_file, folder / f"{stem}-images-idx3-ubyte", dataset, base)
    labels = _read(read_label_file, folder / f"{stem}-labels-idx1-ubyte", dataset, base)
    if images.shape[1:] != (28, 28):
        raise broken(folder / f"{stem}-images-idx3-ubyte", dataset, f"images of {tuple(images.shape[1:])}", base)
    return ArraySamples(images[:, None], labels)


def _read(reader, path: Path, dataset: str, base: Path) -> torch.Tensor:
    if not path.is_file():
        raise absent(path, dataset, "ossci-datasets.s3.amazonaws.com/mnist", "11 MB packed", base)
    try:
        return reader(str(path))
    except (ValueError, RuntimeError, AssertionError, TypeError, KeyError, IndexError, OSError) as error:
        raise broken(path, dataset, error or type(error).__name__, base) from None


BLACK = 28 * 28  # the pixel number that stands for "outside the image"


def rotated_pixels(angles: torch.Tensor) -> torch.Tensor:
    """(N, 784): which pixel of a digit each pixel shows after a counter-clockwise turn by `angles` (N,) degrees."""
    place = torch.arange(28, dtype=torch.float64) - 13.5
    y, x = torch.meshgrid(place, place, indexing="ij")
    turn = torch.deg2rad(angles.double())[:, None, None]
    column = (x * turn.cos() - y * turn.sin() + 13.5).round().long()  # (N, 28, 28), the nearest pixel
    row = (x * turn.sin() + y * turn.cos() + 13.5).round().long()
    outside = (column < 0) | (column > 27) | (row < 0) | (row > 27)
    return (28 * row + column).masked_fill(outside, BLACK).flatten(1)


def show_pixels(images: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Images (N, 1, 28, 28) with pixel p taken from pixel source[p]; `source` (784,), or (N, 784) for each its own."""
    flat = F.pad(images.flatten(1), (0, 1))  # (N, 785), the last column black
    return (flat[:, source] if source.dim() == 1 else flat.gather(1, source)).view(images.shape)


class MovedDigits(ArraySamples):
    """Digits whose pixels are moved when they are read, so that all tasks share one array."""

    def __init__(self, digits: ArraySamples, source: torch.Tensor):
        self.upright, self.source = digits.data, source
        self.targets, self.extras = digits.targets, {}

    @property
    def data(self) -> torch.Tensor:
        return show_pixels(self.upright, self.source)

    def images(self, rows: torch.Tensor) -> torch.Tensor:
        return show_pixels(self.upright[rows], self.source)

    inputs = images


class DomainMNIST(ContinualDataset):
    """All ten digits in every task, their pixels moved in the task's own way.

    The moved images are the data of the task, not an augmentation: buffers and features see them as they are.
    """

    N_TASKS = 20
    N_CLASSES_PER_TASK = 10
    SIZE = (28, 28)
    CLASS_NAMES = CLASS_NAMES
    TEMPLATES = TEMPLATES
    FILES = (SOURCES["mnist"],)
    DEFAULTS = {"batch_size": 128, "n_epochs": 1, "backbone": "mnistmlp"}

    def load(self, train: bool) -> ArraySamples:
        return load_mnist(self.args, self.NAME, train)

    def source_pixels(self, task: int) -> torch.Tensor:
        """(784,): which pixel of a digit each pixel of the task shows."""
        raise NotImplementedError(f"{type(self).__name__} defines no source_pixels()")

    def get_data_loaders(self):
        following = self.c_task + 1
        source = self.source_pixels(self.task_order[following] if following < self.N_TASKS else following)
        train, test = (MovedDigits(self.samples(part), source) for part in (True, False))
        return store_masked_loaders(train, test, self)
