"""--image_cache 1: images decoded and resized once, kept on disk as bytes at the size that a transform uses.

What is kept is the result of a transform's first steps as far as they are the same each time and end in a fixed size
(Resize and CenterCrop of a test transform; of training images, what is returned without augmentation). A training
transform that begins with a random crop needs the whole image: it reads the file as before. So every pixel is the same
with and without the cache.

A cache is a folder named by a sha256 of the files' content, the steps and the library versions: changed images get
another one. The content is that of `FileSamples.digests`: files of unchanged size and times are not read again, unless
--features verify asks for it. pixels.u8 holds (N, 3, H, W), rows.u4 a checksum for each image that is there; an image
whose checksum differs is decoded again. Processes may share a cache: they write the same bytes to the same places.
"""

import hashlib
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision.transforms import functional as TF
from torchvision.transforms import transforms as T
from tqdm import tqdm

from datasets.utils.fetch import base_path
from datasets.utils.samples import FileSamples
from utils.batch_transforms import flatten
from utils.conf import warn_once
from utils.errors import UserError, disk_errors
from utils.settings import option

CHUNK = 256  # images decoded before they are written
REMEDY = "leave out --image_cache"


class Steps(NamedTuple):
    """A transform in two parts: what gives the same image each time, at a fixed size (H, W), and what follows."""

    first: T.Compose
    size: tuple[int, int]
    rest: T.Compose


def split_steps(transform) -> Steps | None:
    """None if the transform does not begin with steps that give a fixed size."""
    steps, size, n = flatten(transform), None, 0
    for step in steps:
        if type(step) is T.Resize:
            size = None if isinstance(step.size, int) or len(step.size) == 1 else tuple(step.size)
        elif type(step) is T.CenterCrop:
            size = tuple(step.size)
        elif not getattr(step, "fixed", False):
            break
        n += 1
    return Steps(T.Compose(steps[:n]), size, T.Compose(steps[n:])) if size else None


class ImageCache:
    """All images of some samples after some steps; `ensure` decodes what is not there yet."""

    def __init__(self, root: Path, samples: FileSamples, steps: Steps):
        self.samples, self.steps = samples, steps
        self.shape = (len(samples), 3, *steps.size)
        versions = f"{PIL.__version__} {torchvision.__version__}"
        key = f"{type(samples).__qualname__} {samples.fingerprint} {steps.first} {versions}"
        self.folder = root / hashlib.sha256(key.encode()).hexdigest()[:32]
        self.sound = np.zeros(len(samples), dtype=bool)  # seen by this process, with the right checksum
        self._maps: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getstate__(self) -> dict:
        return {**vars(self), "_maps": None}  # a worker process opens the files itself

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:]))

    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and checksums; files of a wrong length, which a full disk or a crash left, get the right one."""
        if self._maps is None:
            with disk_errors(self.folder, REMEDY):
                self.folder.mkdir(parents=True, exist_ok=True)
                for name, length in (("pixels.u8", len(self) * self.row_bytes), ("rows.u4", 4 * len(self))):
                    with open(self.folder / name, "ab") as file:
                        if file.tell() != length:
                            file.truncate(length)
                pixels = np.memmap(self.folder / "pixels.u8", dtype=np.uint8, mode="r", shape=self.shape)
                checks = np.memmap(self.folder / "rows.u4", dtype="<u4", mode="r", shape=self.shape[:1])
            self._maps = pixels, checks
        return self._maps

    def ensure(self, rows: np.ndarray, progress: bool = True) -> None:
        """Decode the rows that are not there, or whose checksum is not that of their pixels."""
        todo = np.unique(rows[~self.sound[rows]])
        if not len(todo):
            return
        pixels, checks = self.maps()
        right = np.array([bool(checks[row]) and checksum(pixels[row]) == checks[row] for row in todo])
        if damaged := int((checks[todo[~right]] != 0).sum()):
            warn_once(f"{damaged} images in {self.folder} are damaged and are decoded again")
        self.sound[todo[right]] = True
        self.decode(todo[~right], progress)

    def decode(self, rows: np.ndarray, progress: bool) -> None:
        free = shutil.disk_usage(self.folder).free
        needed = len(rows) * self.row_bytes
        if needed > free:
            raise UserError(
                f"--image_cache needs {needed / 1e9:.1f} GB for {len(rows)} images in {self.folder}, but only "
                f"{free / 1e9:.1f} GB are free: free some space or {REMEDY}"
            )
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        bar = tqdm(total=len(rows), desc="decoding images", unit="img", delay=2, disable=not progress)
        with bar, ThreadPoolExecutor(cpus) as pool:
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                self.write(chunk, list(pool.map(self.decoded, chunk)))
                bar.update(len(chunk))

    def decoded(self, row: int) -> np.ndarray:
        """(3, H, W) bytes of one image."""
        return TF.pil_to_tensor(self.steps.first(self.samples.open(int(row)))).numpy()

    def write(self, rows: np.ndarray, images: list[np.ndarray]) -> None:
        """Pixels before checksums; written, not mapped, so that a full disk is an error and not a signal."""
        with disk_errors(self.folder, REMEDY):
            pixels, checks = (os.open(self.folder / name, os.O_WRONLY) for name in ("pixels.u8", "rows.u4"))
            try:
                for row, image in zip(rows.tolist(), images, strict=True):
                    write_all(pixels, image.tobytes(), row * self.row_bytes)
                for row, image in zip(rows.tolist(), images, strict=True):
                    write_all(checks, checksum(image).to_bytes(4, "little"), 4 * row)
            finally:
                os.close(pixels), os.close(checks)
        self.sound[rows] = True

    def images(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) bytes."""
        wanted = rows.numpy()
        self.ensure(wanted, progress=False)
        return torch.from_numpy(self.maps()[0][wanted])

    def picture(self, row: int) -> Image.Image:
        self.ensure(np.array([row]), progress=False)
        return TF.to_pil_image(torch.from_numpy(np.array(self.maps()[0][row])))


def checksum(image: np.ndarray) -> int:
    """Never 0, which stands for an image that is not there."""
    return zlib.crc32(np.ascontiguousarray(image)) or 1


def write_all(fd: int, data: bytes, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


class ImageCaches:
    """The caches of a run: one for each (samples, steps) that a split asks for."""

    def __init__(self, root: Path, progress: bool = True):
        self.root, self.progress = root, progress
        self.known: dict[tuple[int, str], ImageCache] = {}

    def find(self, samples, transform) -> tuple[ImageCache, Steps] | None:
        """The cache of a transform's first steps, of samples that are files; None if nothing can be kept."""
        if transform is None or not isinstance(samples, FileSamples):
            return None
        steps = split_steps(transform)
        if steps is None:
            return None
        samples = getattr(samples, "distinct", samples)  # several samples may show one image
        key = id(samples), str(steps.first)
        if key not in self.known:
            self.known[key] = ImageCache(self.root, samples, steps)
        return self.known[key], steps


def use_caches(setting, splits: list) -> None:
    """With --image_cache: the splits of all tasks share the caches of the run."""
    if option(setting.args, "image_cache"):
        if not hasattr(setting, "image_caches"):
            folder = base_path(setting.args) / "image_cache"
            setting.image_caches = ImageCaches(folder, not option(setting.args, "non_verbose", False))
        for split in splits:
            split.image_caches = setting.image_caches


def places(samples, rows: torch.Tensor) -> torch.Tensor:
    """Rows in the cache of rows of the samples."""
    return samples.place[rows] if hasattr(samples, "distinct") else rows
