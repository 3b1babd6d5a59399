"""Where samples come from: arrays in memory, image files, or another torch dataset. Splits are index views of these."""

import copy
import hashlib
import io
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.utils.image_files import open_image
from utils.content import content_digests, digest_of
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
        """sha256 of the pixels (and tokens): the key of cached features."""
        digest = hashlib.sha256()
        for part in (self.data.image, self.data.text) if isinstance(self.data, Pair) else (self.data,):
            digest.update(str((tuple(part.shape), part.dtype)).encode())
            digest.update(part.contiguous().numpy())
        return digest.hexdigest()


class FileSamples:
    """Samples that are image files, opened on demand."""

    def __init__(self, paths: list[Path], targets, **extras):
        self.paths = [Path(p) for p in paths]
        self.targets = torch.as_tensor(targets, dtype=torch.long)
        self.extras = extras
        self.digest_folder: Path | None = None
        self.trust_times = True
        self.background: str | None = None  # what transparent images are laid on; None: their hidden colors are shown

    def __len__(self) -> int:
        return len(self.paths)

    def keep_digests(self, folder: Path, trust_times: bool) -> None:
        """Where digests of the files are kept, and whether a file of the same size and times counts as unchanged."""
        self.digest_folder, self.trust_times = folder, trust_times

    @cached_property
    def digests(self) -> np.ndarray:
        """(N, 32) sha256 of each file."""
        try:
            return content_digests(self.paths, self.digest_folder, self.trust_times)
        except OSError as error:
            raise UserError(
                f"image {error.filename} is missing or cannot be read: restore it, or create the split list again"
            ) from None

    def lay_on(self, color: str | None) -> None:
        self.background = color

    def content(self, row: int) -> io.BytesIO:
        """The bytes of a file; once the digests are known a file that has changed since is refused."""
        data = self.paths[row].read_bytes()
        if "digests" in vars(self) and digest_of(data) != self.digests[row].tobytes():
            raise UserError(f"image {self.paths[row]} has changed since this run began: start the run again")
        return io.BytesIO(data)

    def open(self, row: int) -> Image.Image:
        return open_image(self.paths[row], lambda: self.content(row), self.background)

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
        """sha256 of the files' names and content, in their order, wherever the folder is."""
        digest = hashlib.sha256("\n".join(path.name for path in self.paths).encode("utf-8", "surrogateescape"))
        digest.update(self.digests)
        digest.update((self.background or "").encode())
        return digest.hexdigest()


class PairFiles(FileSamples):
    """Image files with one text each, token ids (N, L). `distinct` lists each file once, `place` (N,) finds a sample's,
    so that an image with many questions is encoded once."""

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

    def keep_digests(self, folder: Path, trust_times: bool) -> None:
        self.distinct.keep_digests(folder, trust_times)

    def lay_on(self, color: str | None) -> None:
        super().lay_on(color)
        self.distinct.lay_on(color)

    @property
    def digests(self) -> np.ndarray:
        return self.distinct.digests[self.place.numpy()]

    def content(self, row: int) -> io.BytesIO:
        return self.distinct.content(int(self.place[row]))

    @cached_property
    def data(self) -> Pair:
        """Paths and token ids."""
        return Pair(np.array([str(path) for path in self.paths], dtype=object), self.text)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the files' names and content, which file a sample has, and the token ids."""
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
        self._read_before: tuple[list[Path], np.ndarray] | None = None  # files and their digests

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def data(self):
        return self.dataset.data

    @property
    def fingerprint(self) -> str:
        """sha256 of the content: pixels, and those of the files where `data` names files."""
        data, digest = self.dataset.data, hashlib.sha256()
        if isinstance(data, torch.Tensor) or (isinstance(data, np.ndarray) and data.dtype.kind in "biufc"):
            data = [data]
        files = [Path(item) for item in data if isinstance(item, (str, Path)) and Path(item).is_file()]
        if self._read_before is None or self._read_before[0] != files:
            self._read_before = files, content_digests(files)
        digest.update(self._read_before[1])
        for item in data:
            if isinstance(item, (torch.Tensor, np.ndarray, Image.Image)):
                array = np.asarray(item)
                digest.update(f"{array.shape}{array.dtype}".encode() + array.tobytes())
            else:
                digest.update(
                    f"{Path(item).name if isinstance(item, (str, Path)) else item}\n".encode("utf-8", "surrogateescape")
                )
        return digest.hexdigest()

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


def fingerprint_of(parts: list[Samples] | None) -> str | None:
    """sha256 of sample lists: content, labels, and what else a sample carries."""
    if parts is None:
        return None
    digest = hashlib.sha256()
    for samples in parts:
        digest.update(samples.fingerprint.encode())
        values = [
            samples.targets,
            getattr(samples, "task_ids", None),
            *(samples.extras[k] for k in sorted(samples.extras)),
        ]
        for value in values:
            tensors = (
                [value]
                if isinstance(value, torch.Tensor)
                else vars(value).values()
                if hasattr(value, "__dict__")
                else []
            )
            for tensor in tensors:
                if isinstance(tensor, torch.Tensor):
                    digest.update(
                        f"{tuple(tensor.shape)}{tensor.dtype}".encode() + tensor.contiguous().numpy().tobytes()
                    )
    return digest.hexdigest()
