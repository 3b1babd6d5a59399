"""CIFAR-10 at 224 pixels, for networks pretrained on ImageNet, in five tasks of two"""

from pathlib import Path

from torchvision import transforms as T

from datasets.seq_cifar10 import SequentialCIFAR10
from datasets.utils.cifar_files import load_cifar
from datasets.utils.file_streams import Content, FileStream
from datasets.utils.image_streams import VIT, as_images
from datasets.utils.labels import ASYMMETRIC_CIFAR10
from datasets.utils.mtil_protocol import DOMAINS
from datasets.utils.sources import SOURCES

NORMALIZE = [T.ToTensor(), T.Normalize(SequentialCIFAR10.MEAN, SequentialCIFAR10.STD)]


class SequentialCIFAR10At224(FileStream):
    NAME = "seq-cifar10-224"
    SETTING = "class-il"
    N_TASKS = 5
    N_CLASSES_PER_TASK = 2
    MEAN, STD = SequentialCIFAR10.MEAN, SequentialCIFAR10.STD
    RESIZE = T.Resize((224, 224))
    TRANSFORM = T.Compose([RESIZE, T.RandomCrop(224, padding=28), T.RandomHorizontalFlip(), *NORMALIZE])
    TEST_TRANSFORM = T.Compose([RESIZE, *NORMALIZE])
    TEMPLATES = list(DOMAINS["cifar100"].templates)
    MISTAKEN_FOR = ASYMMETRIC_CIFAR10
    DEFAULTS = {"batch_size": 32, "n_epochs": 50, "backbone": VIT}
    FILES = (SOURCES["cifar10"],)

    def read(self, base: Path) -> Content:
        parts = [as_images(load_cifar(self.args, "CIFAR10", self.NAME, train)) for train in (True, False)]
        return Content(*parts, list(SequentialCIFAR10.CLASS_NAMES))
