"""Stanford Cars, 196 makes, in nine tasks of twenty and a last one of sixteen"""

import pickle
from pathlib import Path

import numpy as np
import torch
from torchvision import transforms as T

from datasets.utils.file_streams import BICUBIC, Content, FileStream
from datasets.utils.samples import ArraySamples, FileSamples
from datasets.utils.sources import HUB, Archive, Source
from utils import json_text

TENSORS = ("train_images.pt", "train_labels.pt", "test_images.pt", "test_labels.pt", "class_names.json")
PICKLE_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    LookupError,
    EOFError,
    OSError,
    TypeError,
    AttributeError,
)


class SequentialCars196(FileStream):
    """<base_path>/cars196/{train,test}_{images,labels}.pt, class_names.json; else <base_path>/stanford_cars.

    The tensors are uint8 images of 224 pixels. Of the published files, only
    cars_test_annos_withlabels.mat has labels of the test part.
    """

    NAME = "seq-cars196"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = [20] * 9 + [16]
    MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    RESIZE = T.Compose([T.Resize(224, BICUBIC), T.CenterCrop(224)])  # how the tensors were made from the files
    TRANSFORM = T.Compose([*RESIZE.transforms, T.RandomHorizontalFlip(), T.ToTensor()])
    TEST_TRANSFORM = T.Compose([*RESIZE.transforms, T.ToTensor()])
    TEMPLATES = ["a photo of a {}.", "a photo of a {}, a type of car.", "a photo of the {}."]
    DEFAULTS = {"batch_size": 128, "n_epochs": 50, "backbone": "timm:vit_base_patch16_224"}
    FILES = (
        Source(
            ("cars196/train_images.pt|stanford_cars",),
            "huggingface.co aimagelab-ta/cars196",
            "16,185 images, 2.4 GB",
            tuple(Archive(f"{HUB}/cars196/resolve/main/{name}", None, "cars196") for name in TENSORS),
        ),
    )
    N_IMAGES = 16_185

    def read(self, base: Path) -> Content:
        tensors, published = base / "cars196", base / "stanford_cars"
        if tensors.is_dir() or not published.is_dir():
            return Content(self._tensors(tensors, "train"), self._tensors(tensors, "test"), self._names(tensors))
        meta = published / "devkit" / "cars_meta.mat"
        names = [str(np.asarray(name).item()) for name in self._mat(meta, "class_names").ravel()]
        train = self._annotated(published / "devkit" / "cars_train_annos.mat", published / "cars_train")
        test = self._annotated(published / "cars_test_annos_withlabels.mat", published / "cars_test")
        return Content(train, test, names)

    def _tensors(self, root: Path, part: str) -> ArraySamples:
        found = []
        for kind in ("images", "labels"):
            path = root / f"{part}_{kind}.pt"
            if not path.is_file():
                raise self.absent(path)
            try:
                found.append(torch.as_tensor(torch.load(path, weights_only=True, map_location="cpu")))
            except PICKLE_ERRORS as error:
                raise self.broken(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from None
        images, labels = found
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != (3, *self.SIZE):
            raise self.broken(
                root / f"{part}_images.pt", f"{images.dtype} {tuple(images.shape)}, not uint8 (N, 3, 224, 224)"
            )
        if labels.ndim != 1 or labels.is_floating_point():
            raise self.broken(root / f"{part}_labels.pt", f"{labels.dtype} {tuple(labels.shape)}, not integers (N,)")
        return ArraySamples(images, labels)

    def _names(self, root: Path) -> list[str]:
        path = root / "class_names.json"
        try:
            names = json_text.parse("\n".join(self.lines(path)))
            return names if isinstance(names, list) else [str(names[str(label)]) for label in range(len(names))]
        except (ValueError, KeyError, TypeError) as error:
            raise self.broken(path, f"not a table of labels and names: {error}") from None

    def _mat(self, path: Path, key: str) -> np.ndarray:
        from scipy.io import loadmat

        if not path.is_file():
            raise self.absent(path)
        try:
            return loadmat(path)[key]
        except Exception as error:  # scipy's reader raises its own classes for a damaged file
            raise self.broken(path, error) from None

    def _annotated(self, path: Path, images: Path) -> FileSamples:
        table = self._mat(path, "annotations").ravel()
        if not {"class", "fname"} <= set(table.dtype.names or ()):
            raise self.broken(path, "its rows do not have class and fname")
        rows = [(str(row["fname"].item()), int(row["class"].item()) - 1) for row in table]
        return self.files(images, rows, path)
