"""Where samples come from: arrays in memory, image files, or a foreign torch dataset. Splits are index views of these."""

import copy
import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from utils.errors import UserError
from utils.pair import Inputs, Pair


class ArraySamples:
    """Samples held in memory: `data` uint8 (N, C, H, W), or a Pair of such images with token ids."""

    def __init__(self, data: Inputs, targets, **extras):
        self.data = data
        self.targets = torch.as_tensor(targets, dtype=torch.long)
        self.extras = extras
        if len(self.data) != len(self.targets):
            raise UserError(f"{len(self.data)} images but {len(self.targets)} labels: the files do not belong together")

    def __len__(self) -> int:
        return len(self.targets)

    def images(self, rows: torch.Tensor) -> torch.Tensor:
        return (self.data.image if isinstance(self.data, Pair) else self.data)[rows]

    def inputs(self, rows: torch.Tensor) -> Inputs:
        return self.data[rows]

    def with_data(self, data: Inputs) -> "ArraySamples":
        """Other images under placeholder labels, since a split has its own."""
        return ArraySamples(data, torch.zeros(len(data)))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the pixels (and tokens): what features are keyed by."""
        digest = hashlib.sha256()
        for part in (self.data.image, self.data.text) if isinstance(self.data, Pair) else (self.data,):
            digest.update(str((tuple(part.shape), part.dtype)).encode())
            digest.update(part.contiguous().numpy())
        return digest.hexdigest()


class FileSamples:
    """Samples that are image files, opened when asked for."""

    def __init__(self, paths: list[Path], targets, **extras):
        self.paths = [Path(p) for p in paths]
        self.targets = torch.as_tensor(targets, dtype=torch.long)
        self.extras = extras

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, row: int) -> Image.Image:
        path = self.paths[row]
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except FileNotFoundError:
            raise UserError(f"image {path} is missing: restore it, or make the split list anew") from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise UserError(f"image {path} cannot be read ({error}): replace or remove that file") from None

    def images(self, rows: torch.Tensor) -> list[Image.Image]:
        return [self.open(int(row)) for row in rows]

    def with_data(self, data: list) -> "FileSamples":
        """Other files under placeholder labels, since a split has its own."""
        return FileSamples(data, torch.zeros(len(data)))

    @cached_property
    def data(self) -> list[str]:
        return [str(p) for p in self.paths]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of names, sizes and times: a changed file changes it without reading every pixel."""
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                stat = path.stat()
            except OSError:
                raise UserError(f"image {path} is missing: restore it, or make the split list anew") from None
            digest.update(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


class PairFiles(FileSamples):
    """Image files with a text each, token ids (N, L). `distinct` lists each file once, `place` (N,) finds a sample's, so
    that a picture which many questions are asked about is encoded once."""

    def __init__(self, paths: list[Path], text: torch.Tensor, targets, **extras):
        super().__init__(paths, targets, **extras)
        if not len(self.paths) == len(text) == len(self.targets):
            raise UserError(
                f"{len(self.paths)} images, {len(text)} texts, {len(self.targets)} labels: they do not belong together"
            )
        self.text = text
        number = {path: i for i, path in enumerate(dict.fromkeys(self.paths))}
        self.distinct = FileSamples(list(number), torch.zeros(len(number)))
        self.place = torch.tensor([number[path] for path in self.paths], dtype=torch.long)

    @cached_property
    def data(self) -> Pair:
        """Paths and token ids."""
        return Pair(np.array([str(path) for path in self.paths], dtype=object), self.text)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the files' names, sizes and times, which file a sample has, and the token ids."""
        digest = hashlib.sha256(self.distinct.fingerprint.encode())
        for part in (self.place, self.text):
            digest.update(part.contiguous().numpy())
        return digest.hexdigest()


class ForeignSamples:
    """A torch dataset with `data` and `targets` whose items are (augmented, label, not augmented, ...)."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.targets = torch.as_tensor([int(t) for t in dataset.targets], dtype=torch.long)
        self.extras = {}

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def data(self):
        return self.dataset.data

    @property
    def fingerprint(self) -> str:
        data = self.dataset.data
        if isinstance(data, torch.Tensor):
            data = data.numpy()
        content = data.tobytes() if hasattr(data, "tobytes") else "\n".join(map(str, data)).encode()
        return hashlib.sha256(content).hexdigest()

    def with_data(self, data) -> "ForeignSamples":
        """A copy of the dataset around other images; its labels are placeholders, since a split has its own."""
        dataset = copy.copy(self.dataset)
        dataset.data, dataset.targets = data, [0] * len(data)
        return ForeignSamples(dataset)

    def images(self, rows: torch.Tensor) -> list:
        from torchvision.transforms.functional import to_pil_image

        found = [self.dataset.data[int(row)] for row in rows]
        if isinstance(found[0], (str, Path)):
            return FileSamples(found, torch.zeros(len(found))).images(torch.arange(len(found)))
        return [image if isinstance(image, Image.Image) else to_pil_image(image) for image in found]


Samples = ArraySamples | FileSamples | ForeignSamples


def as_samples(source) -> Samples:
    """Our own sample lists as they are; a torch dataset in a wrapper."""
    return source if isinstance(source, (ArraySamples, FileSamples, ForeignSamples)) else ForeignSamples(source)
