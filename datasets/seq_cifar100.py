"""CIFAR-100 in ten tasks of ten"""

from torchvision import transforms as T

from datasets.utils.cifar_files import load_cifar
from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.samples import ArraySamples
from datasets.utils.sources import SOURCES

SUPERCLASSES = [
    "beaver, dolphin, otter, seal, whale",
    "aquarium fish, flatfish, ray, shark, trout",
    "orchid, poppy, rose, sunflower, tulip",
    "bottle, bowl, can, cup, plate",
    "apple, mushroom, orange, pear, sweet pepper",
    "clock, keyboard, lamp, telephone, television",
    "bed, chair, couch, table, wardrobe",
    "bee, beetle, butterfly, caterpillar, cockroach",
    "bear, leopard, lion, tiger, wolf",
    "bridge, castle, house, road, skyscraper",
    "cloud, forest, mountain, plain, sea",
    "camel, cattle, chimpanzee, elephant, kangaroo",
    "fox, porcupine, possum, raccoon, skunk",
    "crab, lobster, snail, spider, worm",
    "baby, boy, girl, man, woman",
    "crocodile, dinosaur, lizard, snake, turtle",
    "hamster, mouse, rabbit, shrew, squirrel",
    "maple tree, oak tree, palm tree, pine tree, willow tree",
    "bicycle, bus, motorcycle, pickup truck, train",
    "lawn mower, rocket, streetcar, tank, tractor",
]
NAMES = sorted(name for group in SUPERCLASSES for name in group.split(", "))  # labels are in alphabetical order


def next_in_superclass() -> dict[int, int]:
    """Each class to the following one of its superclass, the last to the first."""
    groups = [[NAMES.index(name) for name in group.split(", ")] for group in SUPERCLASSES]
    return {a: b for group in groups for a, b in zip(group, group[1:] + group[:1], strict=True)}


class SequentialCIFAR100(ContinualDataset):
    NAME = "seq-cifar100"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = 10
    SIZE = (32, 32)
    MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    TRANSFORM = T.Compose([T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)])
    CLASS_NAMES = NAMES
    MISTAKEN_FOR = next_in_superclass()
    FILES = (SOURCES["cifar100"],)
    DEFAULTS = {
        "batch_size": 32,
        "n_epochs": 50,
        "backbone": "resnet18",
        "lr_scheduler": "multisteplr",
        "lr_milestones": [35, 45],
    }

    def load(self, train: bool) -> ArraySamples:
        return load_cifar(self.args, "CIFAR100", self.NAME, train)
