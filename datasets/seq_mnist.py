"""MNIST digits in five tasks of two"""

from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.mnist_files import CLASS_NAMES, TEMPLATES, load_mnist
from datasets.utils.samples import ArraySamples
from datasets.utils.sources import SOURCES


class SequentialMNIST(ContinualDataset):
    NAME = "seq-mnist"
    SETTING = "class-il"
    N_TASKS = 5
    N_CLASSES_PER_TASK = 2
    SIZE = (28, 28)
    CLASS_NAMES = CLASS_NAMES
    TEMPLATES = TEMPLATES
    FILES = (SOURCES["mnist"],)
    DEFAULTS = {"batch_size": 64, "n_epochs": 1, "backbone": "mnistmlp"}

    def load(self, train: bool) -> ArraySamples:
        return load_mnist(self.args, self.NAME, train)
