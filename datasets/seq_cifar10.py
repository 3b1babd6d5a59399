"""CIFAR-10 in five tasks of two"""

from argparse import Namespace
from typing import Literal

from torchvision import transforms as T

from datasets.utils.cifar_files import load_cifar
from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.labels import ASYMMETRIC_CIFAR10
from datasets.utils.samples import ArraySamples
from datasets.utils.sources import SOURCES


class SequentialCIFAR10(ContinualDataset):
    NAME = "seq-cifar10"
    SETTING = "class-il"
    N_TASKS = 5
    N_CLASSES_PER_TASK = 2
    SIZE = (32, 32)
    MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)
    TRANSFORM = T.Compose([T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)])
    CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    MISTAKEN_FOR = ASYMMETRIC_CIFAR10
    FILES = (SOURCES["cifar10"],)
    DEFAULTS = {"batch_size": 32, "n_epochs": 50, "backbone": "resnet18"}

    def __init__(self, args: Namespace, transform_type: Literal["weak", "strong"] = "weak"):
        super().__init__(args)
        if transform_type == "strong":
            *steps, to_tensor, normalize = type(self).TRANSFORM.transforms
            self.TRANSFORM = T.Compose([*steps, T.ColorJitter(0.2, 0.2, 0.2, 0.1), to_tensor, normalize])

    def get_transform(self):
        return T.Compose([T.ToPILImage(), self.TRANSFORM])

    def load(self, train: bool) -> ArraySamples:
        return load_cifar(self.args, "CIFAR10", self.NAME, train)
