"""MNIST digits in five tasks of two"""

from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.mnist_files import CLASS_NAMES, TEMPLATES, load_mnist
from datasets.utils.samples import ArraySamples


class SequentialMNIST(ContinualDataset):
    NAME = "seq-mnist"
    SETTING = "class-il"
    N_TASKS = 5
    N_CLASSES_PER_TASK = 2
    SIZE = (28, 28)
    CLASS_NAMES = CLASS_NAMES
    TEMPLATES = TEMPLATES
    DEFAULTS = {"batch_size": 64, "n_epochs": 1, "backbone": "mnistmlp"}

    def load(self, train: bool) -> ArraySamples:
        return load_mnist(self.args, self.NAME, train)
