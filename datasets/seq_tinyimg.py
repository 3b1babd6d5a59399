"""Tiny ImageNet, 200 classes at 64 pixels, in ten tasks of twenty

<base_path>/tiny-imagenet-200 as published, or TINYIMG/processed/{x,y}_{train,val}_{01..20}.npy as Mammoth keeps them.
Labels are lines of wnids.txt; the published validation part is the test part; a name is the first in words.txt.
"""

from pathlib import Path

import numpy as np
import torch
from torchvision import transforms as T

from datasets.utils.array_files import ARRAY_ERRORS
from datasets.utils.file_streams import Content, FileStream
from datasets.utils.image_streams import names_of, need_names
from datasets.utils.samples import ArraySamples
from datasets.utils.sources import Archive, Source

NORMALIZE = [T.ToTensor(), T.Normalize((0.4802, 0.4480, 0.3975), (0.2770, 0.2691, 0.2821))]


class SequentialTinyImageNet(FileStream):
    NAME = "seq-tinyimg"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = 20
    SIZE = (64, 64)
    MEAN, STD = NORMALIZE[1].mean, NORMALIZE[1].std
    RESIZE = None
    TRANSFORM = T.Compose([T.RandomCrop(64, padding=4), T.RandomHorizontalFlip(), *NORMALIZE])
    TEST_TRANSFORM = T.Compose(NORMALIZE)
    DEFAULTS = {"batch_size": 32, "n_epochs": 50, "backbone": "resnet18"}
    FILES = (
        Source(
            ("tiny-imagenet-200|TINYIMG/processed",),
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            "110,000 images, 248 MB",
            (Archive("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),),
        ),
    )
    N_IMAGES = 110_000

    def read(self, base: Path) -> Content:
        root, arrays = base / "tiny-imagenet-200", base / "TINYIMG" / "processed"
        if not root.is_dir() and arrays.is_dir():
            return Content(self.arrays(arrays, "train"), self.arrays(arrays, "val"), [str(k) for k in range(200)])
        wnids = self.lines(root / "wnids.txt")
        if len(set(wnids)) != self.N_CLASSES:
            raise self.broken(root / "wnids.txt", f"{len(set(wnids))} classes, {self.N_CLASSES} are published")
        label, names = {wnid: k for k, wnid in enumerate(wnids)}, names_of(self.lines(root / "words.txt"))
        train = [
            (f"{wnid}/images/{path.name}", label[wnid])
            for wnid in wnids
            for path in sorted((root / "train" / wnid / "images").glob("*.JPEG"))
        ]
        source = root / "val" / "val_annotations.txt"
        test = [(row[0], label.get(row[1], -1)) for row in (f"{line}\t".split("\t") for line in self.lines(source))]
        parts = (self.files(root / "train", train, root), self.files(root / "val" / "images", test, source))
        return Content(*parts, need_names(names, wnids, root / "words.txt"))

    def arrays(self, root: Path, part: str) -> ArraySamples:
        """Floats in [0, 1] (n, 64, 64, 3), rounded to bytes; in this form the names are numbers."""
        found: dict[str, list[np.ndarray]] = {"x": [], "y": []}
        for kind in found:
            for number in range(1, 21):
                path = root / f"{kind}_{part}_{number:02d}.npy"
                if not path.is_file():
                    raise self.absent(path)
                try:
                    values = np.load(path, allow_pickle=False)
                    found[kind].append(np.rint(255 * values).astype(np.uint8) if kind == "x" else values)
                except ARRAY_ERRORS as error:
                    raise self.broken(path, error or type(error).__name__) from None
        images = torch.from_numpy(np.concatenate(found["x"])).permute(0, 3, 1, 2).contiguous()
        return ArraySamples(images, np.concatenate(found["y"]))
