"""CIFAR-10 and CIFAR-100 from their published pickles, read by an unpickler that can build arrays and nothing else."""

import hashlib
import io
import pickle
import warnings
from argparse import Namespace

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from datasets.utils.fetch import absent, base_path, broken
from datasets.utils.samples import ArraySamples

# torchvision class (file names and md5 only), folder under base_path, key of the labels, size of the archive
SETS = {"CIFAR10": (CIFAR10, b"labels", "163 MB"), "CIFAR100": (CIFAR100, b"fine_labels", "161 MB")}
READ_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ImportError,
    MemoryError,
    OverflowError,
)


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the names that a pickled numpy array is made of; any other name in the file is refused, not imported."""

    def find_class(self, module: str, name: str):
        place = module.replace("numpy._core", "numpy.core")
        known = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
            ("numpy.core.numeric", "_frombuffer"): np.zeros(0).__reduce_ex__(5)[0],
            ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
        }
        if (place, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which an array does not need")
        return known[place, name]


def load_cifar(args: Namespace, which: str, dataset: str, train: bool) -> ArraySamples:
    """`which` ("CIFAR10" or "CIFAR100") as uint8 (N, 3, 32, 32) from <base_path>/<which>/<folder of the archive>."""
    published, label_key, size = SETS[which]
    base = base_path(args)
    folder = base / which / published.base_folder
    images, labels, changed = [], [], False
    for name, md5 in published.train_list if train else published.test_list:
        path = folder / name
        if not path.is_file():
            raise absent(path, dataset, published.url, size, base)
        content = path.read_bytes()
        changed |= hashlib.md5(content, usedforsecurity=False).hexdigest() != md5
        try:
            part_images, part_labels = _read(content, label_key)
        except READ_ERRORS as error:
            raise broken(path, dataset, error or type(error).__name__, base) from None
        images.append(part_images)
        labels.append(part_labels)
    if changed:
        warnings.warn(
            f"{dataset}: {folder} contains files other than the published ones; scores are not comparable", stacklevel=2
        )
    return ArraySamples(torch.from_numpy(np.concatenate(images)), np.concatenate(labels))


def _read(content: bytes, label_key: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) and labels (n,) of one file; ValueError where it holds something else."""
    table = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(table, dict):
        raise ValueError("not a table of images and labels")
    table = {k.encode() if isinstance(k, str) else k: v for k, v in table.items()}
    images, labels = table.get(b"data"), np.asarray(table.get(label_key))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3072:
        raise ValueError("'data' is not a uint8 array of rows of 3072 numbers")
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(images):
        raise ValueError(f"'{label_key.decode()}' is not one integer for each of the {len(images)} images")
    return images.reshape(-1, 3, 32, 32), labels.astype(np.int64)
