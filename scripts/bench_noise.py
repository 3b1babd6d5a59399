"""Streams of random images for the benches."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch

from datasets.utils import tiny_streams
from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.samples import ArraySamples
from utils.cli import registry

WORDS = ["cup", "star", "fish", "key", "apple", "boat", "tree", "bell"]  # the embedded CLIP knows these
STREAM = "bench-noise"


def stream(tasks: int, classes: int, images: int, side: int) -> type[ContinualDataset]:
    """Tasks of so many classes; each has at least so many images for training, and as many others for test."""

    class Noise(ContinualDataset):
        NAME = STREAM
        SETTING, N_TASKS, N_CLASSES_PER_TASK, SIZE = "class-il", tasks, classes, (side, side)
        DEFAULTS = tiny_streams.DEFAULTS | {"backbone": "clip-visual"}
        CLASS_NAMES = [
            f"{WORDS[c % 8]} {WORDS[c // 8 % 8]}{' ' + WORDS[c // 64 % 8] if c >= 64 else ''}"
            for c in range(tasks * classes)
        ]

        def load(self, train):
            labels = torch.arange(max(images, classes) * tasks) % (tasks * classes)
            draw = torch.Generator().manual_seed(int(train))
            return ArraySamples(
                torch.randint(0, 256, (len(labels), 3, side, side), dtype=torch.uint8, generator=draw), labels
            )

    return Noise


@contextlib.contextmanager
def known(dataset: type[ContinualDataset]) -> Iterator[None]:
    """The command line knows the stream by its name."""
    with mock.patch.dict(registry._registered["dataset"], {STREAM: dataset}):
        yield
