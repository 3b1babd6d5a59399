"""CIFAR-100 at 224 pixels, for networks pretrained on ImageNet, in ten tasks of ten

--transform_type strong adds color jitter and rotations of up to 15 degrees.
"""

from argparse import Namespace
from pathlib import Path
from typing import Literal

from torchvision import transforms as T

from datasets.seq_cifar100 import NAMES, next_in_superclass
from datasets.utils.cifar_files import load_cifar
from datasets.utils.file_streams import BICUBIC, CROP_AND_FLIP, IMAGENET, Content, FileStream
from datasets.utils.image_streams import VIT, as_images
from datasets.utils.mtil_protocol import DOMAINS
from datasets.utils.sources import SOURCES


class SequentialCIFAR100At224(FileStream):
    NAME = "seq-cifar100-224"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = 10
    MEAN, STD = IMAGENET
    RESIZE = T.Resize((224, 224), BICUBIC)
    TRANSFORM = T.Compose([*CROP_AND_FLIP, T.ToTensor(), T.Normalize(*IMAGENET)])
    STRONG = T.Compose(
        [*CROP_AND_FLIP, T.ColorJitter(0.4, 0.4, 0.4, 0.1), T.RandomRotation(15), *TRANSFORM.transforms[-2:]]
    )
    TEST_TRANSFORM = T.Compose([RESIZE, T.ToTensor(), T.Normalize(*IMAGENET)])
    TEMPLATES = list(DOMAINS["cifar100"].templates)
    MISTAKEN_FOR = next_in_superclass()
    DEFAULTS = {"batch_size": 128, "n_epochs": 20, "backbone": VIT}
    FILES = (SOURCES["cifar100"],)

    def __init__(self, args: Namespace, transform_type: Literal["weak", "strong"] = "weak"):
        super().__init__(args)
        if transform_type == "strong":
            self.TRANSFORM = self.STRONG

    def read(self, base: Path) -> Content:
        parts = [as_images(load_cifar(self.args, "CIFAR100", self.NAME, train)) for train in (True, False)]
        return Content(*parts, list(NAMES))
