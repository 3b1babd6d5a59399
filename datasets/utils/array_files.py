"""Images kept as pickled numpy arrays (.pkl, or object arrays in .npz), read without running anything in the file."""

import hashlib
import io
import zipfile
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.utils.cifar_files import READ_ERRORS, _ArrayUnpickler
from datasets.utils.samples import FileSamples

ARRAY_ERRORS = (*READ_ERRORS, zipfile.BadZipFile, OSError, UnicodeDecodeError)


class ImageArrays(FileSamples):
    """uint8 images (H, W, 3) of any sizes, held in memory."""

    def __init__(self, images: list[np.ndarray], targets):
        super().__init__([], targets)
        self.arrays = images
        if len(images) != len(self.targets):
            raise ValueError(f"{len(images)} images but {len(self.targets)} labels")

    def __len__(self) -> int:
        return len(self.arrays)

    def keep_digests(self, folder: Path, trust_times: bool) -> None:
        """Nothing: the images are in memory."""

    def open(self, row: int) -> Image.Image:
        return Image.fromarray(self.arrays[row])

    @cached_property
    def data(self) -> list[np.ndarray]:
        return self.arrays

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of shapes and pixels."""
        digest = hashlib.sha256()
        for image in self.arrays:
            digest.update(str(image.shape).encode())
            digest.update(np.ascontiguousarray(image))
        return digest.hexdigest()


class _Unpickler(_ArrayUnpickler):
    """Arrays, and the numpy scalars that lists of labels are made of."""

    def find_class(self, module: str, name: str):
        if (module.replace("numpy._core", "numpy.core"), name) == ("numpy.core.multiarray", "scalar"):
            return np.float64(0).__reduce__()[0]
        return super().find_class(module, name)


def read_pickle(path: Path):
    """Arrays, lists, tables and numbers; UnpicklingError where the file asks for anything else."""
    return _Unpickler(io.BytesIO(path.read_bytes())).load()


def read_npz(path: Path, names: tuple[str, ...]) -> list[np.ndarray]:
    """Arrays of an .npz by name; those of objects go through the same unpickler."""
    found = []
    with zipfile.ZipFile(path) as archive:
        for name in names:
            content = io.BytesIO(archive.read(f"{name}.npy"))
            version = np.lib.format.read_magic(content)
            reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in reader:
                raise ValueError(f"'{name}' has npy format {version}")
            shape, _, kind = reader[version](content)
            if kind.hasobject:
                found.append(np.asarray(_Unpickler(content).load(), dtype=object).reshape(shape))
            else:
                content.seek(0)
                found.append(np.lib.format.read_array(content, allow_pickle=False))
    return found


def as_images(values) -> list[np.ndarray]:
    """uint8 (H, W, 3) each; floats in [0, 1] are scaled and rounded, gray images get three channels."""
    images = []
    for value in values:
        image = np.asarray(value)
        if image.dtype == object:
            image = np.array(image.tolist())
        if image.dtype.kind == "f":
            if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
                raise ValueError("a float image has values outside [0, 1]")
            image = np.rint(image * 255).astype(np.uint8)
        image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image is {image.dtype} of shape {image.shape}, expected uint8 (H, W, 3)")
        images.append(image)
    return images


def as_labels(values) -> torch.Tensor:
    """Integer labels (N,)."""
    labels = np.array([np.asarray(v).item() for v in values])
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels are {labels.dtype} of shape {labels.shape}, expected integers")
    return torch.from_numpy(labels.astype(np.int64))
