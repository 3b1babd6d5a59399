"""Picture world, class-il: 10 tasks of 4 kinds of stained tissue, far from all that the tiny CLIP was pre-trained on"""

from argparse import Namespace

from datasets.tiny_world import far
from datasets.utils import tiny_streams
from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.samples import ArraySamples


class SeqTinyFar(ContinualDataset):
    """Invented names: zero-shot CLIP is at chance. --picture_seed draws another set of images."""

    NAME = "seq-tiny-far"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = 4
    SIZE = tiny_streams.SIZE
    MEAN, STD = tiny_streams.MEAN, tiny_streams.STD
    TRANSFORM = tiny_streams.CROP
    TEMPLATES = ["a photo of a {}."]
    DEFAULTS = tiny_streams.DEFAULTS | {"backbone": "clip-visual"}

    def __init__(self, args: Namespace, picture_seed: int = 0):
        self.CLASS_NAMES = far.names()
        super().__init__(args)
        self.picture_seed = picture_seed

    def load(self, train: bool) -> ArraySamples:
        def build():
            return far.far_tiny(train, self.picture_seed), {}

        tensors, _ = tiny_streams.drawn(self.args, self.NAME, train, (self.picture_seed,), build)
        return ArraySamples(tensors["images"], tensors["labels"])
