"""What the streams of the picture world share: sizes, transforms, and images drawn once and kept on disk."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from torchvision import transforms as T

import datasets.tiny_world as tiny_world
from datasets.utils.stream_cache import cached_stream, sources_digest
from utils.settings import option

SIZE = (48, 48)
MEAN, STD = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)  # as the tiny CLIP expects
CROP = T.Compose(
    [T.RandomCrop(48, padding=4), T.ToTensor(), T.Normalize(MEAN, STD)]
)  # sides and digits keep their meaning
DEFAULTS = {"batch_size": 32, "n_epochs": 2, "clip_backbone": "tiny"}


def crop_flip(side: int) -> T.Compose:
    """Augmentation of images that may be mirrored."""
    return T.Compose([T.RandomCrop(side, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)])


def drawn(args: Namespace, name: str, train: bool, settings: tuple, build: Callable[[], tuple[dict, dict]]) -> tuple:
    """(tensors, plain values) that `build` makes from `settings`, or the file that an earlier run left."""
    folder = Path(option(args, "base_path", "./data")) / "tiny_world"
    key = f"{sources_digest(Path(tiny_world.__file__).parent)} {train} {settings}"
    return cached_stream(folder, f"{name}-{'train' if train else 'test'}", key, build)
