"""Picture world, class-il: 10 tasks of 6 never-captioned combinations ("striped fish") in an unseen style"""

from argparse import Namespace
from pathlib import Path
from typing import Literal

from torchvision import transforms as T

import datasets.tiny_world as tiny_world
from datasets.tiny_world import streams
from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.samples import ArraySamples
from datasets.utils.stream_cache import cached_stream, sources_digest
from utils.settings import option


class SeqTiny(ContinualDataset):
    """--picture_seed draws another set of pictures, --style and --shift another and stronger or weaker style."""

    NAME = "seq-tiny"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = 6
    SIZE = (48, 48)
    MEAN, STD = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)  # as the tiny CLIP expects
    TRANSFORM = T.Compose([T.RandomCrop(48, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)])
    TEMPLATES = list(streams.TEMPLATES)
    DEFAULTS = {"batch_size": 32, "n_epochs": 2, "backbone": "clip-visual", "clip_backbone": "tiny"}

    def __init__(self, args: Namespace, picture_seed: int = 0, shift: float = 0.5,
                 style: Literal["stitched", "noisy", "blurred", "warped"] = "stitched"):
        self.CLASS_NAMES = streams.seq_tiny_names()
        super().__init__(args)
        self.picture_seed, self.shift, self.style = picture_seed, shift, style

    def load(self, train: bool) -> ArraySamples:
        drawn = self.picture_seed, self.style, self.shift

        def build():
            found = streams.seq_tiny(train, *drawn)
            return {"images": found["images"], "labels": found["labels"]}, {}

        folder = Path(option(self.args, "base_path", "./data")) / "tiny_world"
        key = f"{sources_digest(Path(tiny_world.__file__).parent)} {train} {drawn}"
        tensors, _ = cached_stream(folder, f"seq-tiny-{'train' if train else 'test'}", key, build)
        return ArraySamples(tensors["images"], tensors["labels"])
