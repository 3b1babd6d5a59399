"""Picture world, class-il: 10 tasks of 6 never-captioned combinations ("striped fish") in an unseen style"""

from argparse import Namespace
from typing import Literal

from datasets.tiny_world import streams
from datasets.utils import tiny_streams
from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.samples import ArraySamples


class SeqTiny(ContinualDataset):
    """--picture_seed draws another set of images, --style and --shift another, stronger or weaker style."""

    NAME = "seq-tiny"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = 6
    SIZE = tiny_streams.SIZE
    MEAN, STD = tiny_streams.MEAN, tiny_streams.STD
    TRANSFORM = tiny_streams.crop_flip(48)
    TEMPLATES = list(streams.TEMPLATES)
    DEFAULTS = tiny_streams.DEFAULTS | {"backbone": "clip-visual"}

    def __init__(
        self,
        args: Namespace,
        picture_seed: int = 0,
        shift: float = 0.9,
        style: Literal["stitched", "noisy", "blurred", "warped"] = "stitched",
    ):
        self.CLASS_NAMES = streams.seq_tiny_names()
        super().__init__(args)
        self.picture_seed, self.shift, self.style = picture_seed, shift, style

    def load(self, train: bool) -> ArraySamples:
        settings = self.picture_seed, self.style, self.shift

        def build():
            found = streams.seq_tiny(train, *settings)
            return {"images": found["images"], "labels": found["labels"]}, {}

        tensors, _ = tiny_streams.drawn(self.args, self.NAME, train, settings, build)
        return ArraySamples(tensors["images"], tensors["labels"])
