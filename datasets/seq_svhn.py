"""SVHN, house numbers, in five tasks of two

The files train_32x32.mat and test_32x32.mat below <base_path>/svhn (or SVHN). Crops, jitter and mirrored digits are
Mammoth's training transform.
"""

from pathlib import Path

import numpy as np
from scipy.io import loadmat

from datasets.utils.array_files import ImageArrays
from datasets.utils.file_streams import Content
from datasets.utils.image_streams import ClipStream
from datasets.utils.mtil_readers import LIST_ERRORS
from datasets.utils.sources import SOURCES


class SequentialSVHN(ClipStream):
    NAME = "seq-svhn"
    SETTING = "class-il"
    N_TASKS = 5
    N_CLASSES_PER_TASK = 2
    TEMPLATES = ['a photo of the street number "{}".', 'a photo of the number "{}".']
    CLASS_NAMES = [str(digit) for digit in range(10)]
    FILES = (SOURCES["svhn"],)
    N_IMAGES = 99_289

    def read(self, base: Path) -> Content:
        return Content(self.part(base, "train"), self.part(base, "test"), self.CLASS_NAMES)

    def part(self, base: Path, name: str) -> ImageArrays:
        places = [base / folder / f"{name}_32x32.mat" for folder in ("svhn", "SVHN")]
        path = next((place for place in places if place.is_file()), places[0])
        if not path.is_file():
            raise self.absent(path)
        try:
            table = loadmat(path)
            images, labels = table["X"].transpose(3, 0, 1, 2), table["y"].ravel().astype(np.int64) % 10  # 10 is zero
            if images.shape[1:] != (32, 32, 3) or images.dtype != np.uint8:
                raise ValueError(f"images of {images.shape[1:]} {images.dtype}")
            return ImageArrays(images, labels)
        except (*LIST_ERRORS, OSError) as error:
            raise self.broken(path, error or type(error).__name__) from None
