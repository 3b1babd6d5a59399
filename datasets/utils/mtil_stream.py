"""Streams over domains with their own names and sentences: what `mtil` and `xtail` share."""

import hashlib
import warnings
from argparse import Namespace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms.functional import to_pil_image

from datasets.utils.continual_dataset import ContinualDataset, fix_class_names_order
from datasets.utils.fetch import absent, base_path, broken
from datasets.utils.file_streams import BICUBIC, CLIP, Content
from datasets.utils.mtil_protocol import DOMAINS, ORDERS, files_of
from datasets.utils.mtil_readers import n_classes_of, read_domain
from datasets.utils.samples import ArraySamples, FileSamples
from datasets.utils.stream_shape import keep_of_class
from utils.errors import UserError


class JoinedSamples(FileSamples):
    """Several sample lists, one after another, image files and arrays mixed, each with labels from an offset on."""

    def __init__(self, parts: list[FileSamples | ArraySamples], offsets: list[int]):
        self.parts = parts
        self.targets = torch.cat([part.targets + first for part, first in zip(parts, offsets, strict=True)])
        self.ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        self.extras = {}

    def __len__(self) -> int:
        return len(self.targets)

    def keep_digests(self, folder: Path, trust_times: bool) -> None:
        for part in self.parts:
            if isinstance(part, FileSamples):
                part.keep_digests(folder, trust_times)

    def open(self, row: int) -> Image.Image:
        which = int(torch.searchsorted(self.ends, row, right=True))
        part, row = self.parts[which], row - (int(self.ends[which - 1]) if which else 0)
        if isinstance(part, FileSamples):
            return part.open(row)
        return to_pil_image(part.images(torch.tensor([row]))[0]).convert("RGB")

    @property
    def data(self) -> list[str]:
        """Where each image is: its file, or the place in an array."""
        return [
            name
            for k, part in enumerate(self.parts)
            for name in (part.data if isinstance(part, FileSamples) else [f"{k}:{r}" for r in range(len(part))])
        ]

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256("|".join(part.fingerprint for part in self.parts).encode()).hexdigest()


def few_per_class(samples: FileSamples | ArraySamples, shots: int, key: tuple) -> FileSamples | ArraySamples:
    """`shots` samples of each class drawn by the key, all of a class that has fewer; in their original order."""
    counts = torch.full((int(samples.targets.max()) + 1,), shots)
    kept = keep_of_class(samples.targets, counts, key).nonzero().flatten()
    if isinstance(samples, ArraySamples):
        return ArraySamples(samples.data[kept], samples.targets[kept])
    return FileSamples([samples.paths[k] for k in kept.tolist()], samples.targets[kept])


class CrossDomainStream(ContinualDataset):
    """A task is a domain. A subclass names its ORDERS and the defaults of its flags.

    --task_order takes names of domains in any order and number; --split coop reads the lists split_zhou_*.json of Zhou
    et al. where they exist (aircraft, cifar100 and mnist keep their published parts); --shots 0 is all of a domain.
    """

    CLIP_BACKBONE = "ViT-B/16"  # of the published tables
    SETTING = "class-il"
    MTIL = DRAWS_SHOTS = True
    SIZE = (224, 224)
    MEAN, STD = CLIP
    RESIZE = T.Compose([T.Resize(224, BICUBIC), T.CenterCrop(224)])
    TRANSFORM = T.Compose(
        [T.RandomResizedCrop(224, scale=(0.9, 1.0), interpolation=BICUBIC), T.ToTensor(), T.Normalize(*CLIP)]
    )
    TEST_TRANSFORM = T.Compose([*RESIZE.transforms, T.ToTensor(), T.Normalize(*CLIP)])
    DEFAULTS = {"batch_size": 64, "n_epochs": 1, "backbone": "clip-visual", "shots": 0, "shots_seed": 0}
    FILES = files_of(ORDERS["I"], "zscl")
    ORDERS = ORDERS
    N_TASKS = len(ORDERS["I"])
    N_CLASSES_PER_TASK = [DOMAINS[d].n_classes for d in ORDERS["I"]]

    def __init__(
        self,
        args: Namespace,
        mtil_order: Literal["I", "II"] = "I",
        task_order: str | None = None,
        split: Literal["zscl", "coop"] = "zscl",
        shots: int = 0,
        shots_seed: int = 0,
    ):
        self.domains = named_order(task_order, self.ORDERS) if task_order else self.ORDERS[mtil_order]
        if shots < 0:
            raise UserError(f"--shots {shots}: it must be 0 (all) or more images per class")
        self.split, self.shots, self.shots_seed = split, shots, shots_seed
        self.N_TASKS = len(self.domains)
        self.FILES = files_of(self.domains, split)
        self.N_CLASSES_PER_TASK = [n_classes_of(d, split) for d in self.domains]
        self.domain_sizes = tuple(self.N_CLASSES_PER_TASK)  # in the order of the raw labels
        super().__init__(args)

    @cached_property
    def contents(self) -> list[Content]:
        base = base_path(self.args)
        contents = [self._read(domain, base) for domain in self.domains]
        for domain, content in zip(self.domains, contents, strict=True):
            published = DOMAINS[domain]
            found, wanted = (len(content.train), len(content.test)), (published.n_train, published.n_test)
            if self.split == "zscl" and found != wanted:
                text = f"{found[0]} + {found[1]} images of {domain} on disk, {wanted[0]} + {wanted[1]} are published"
                warnings.warn(f"{self.NAME}: {text}; scores are not comparable", stacklevel=2)
        return contents

    def _read(self, domain: str, base: Path) -> Content:
        published = DOMAINS[domain]
        amount = f"{domain}, {published.n_train + published.n_test:,} images"
        return read_domain(
            domain,
            self,
            base,
            self.split,
            lambda path: absent(path, self.NAME, published.source, amount, base),
            lambda path, reason: broken(path, self.NAME, reason, base),
        )

    def load(self, train: bool) -> JoinedSamples:
        parts = [content.train if train else content.test for content in self.contents]
        if train and self.shots:
            parts = [
                few_per_class(part, self.shots, ("shots", self.shots_seed, domain))
                for part, domain in zip(parts, self.domains, strict=True)
            ]
        return JoinedSamples(parts, [sum(self.domain_sizes[:k]) for k in range(len(parts))])

    def get_class_names(self) -> list[str]:
        if self.CLASS_NAMES is None:
            self.CLASS_NAMES = [name for content in self.contents for name in content.names]
        return super().get_class_names()

    def get_prompt_templates(self) -> list[str]:
        """For names outside every domain: the sentence that most domains vary."""
        return ["a photo of a {}."]

    def class_templates(self) -> list[list[str]]:
        each = [
            list(DOMAINS[d].templates) for d, n in zip(self.domains, self.domain_sizes, strict=True) for _ in range(n)
        ]
        return fix_class_names_order(each, self.args)

    def get_data_loaders(self):
        loaders = super().get_data_loaders()
        self.train_loader.dataset.not_aug_resize = self.RESIZE
        return loaders


def named_order(text: str, orders: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Domains of a --task_order: names separated by commas, each once."""
    names = tuple(part.strip() for part in str(text).replace(" ", ",").split(",") if part.strip())
    known = orders["I"]
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise UserError(
            f"--task_order {text}: name each domain at most once, separated by commas, from {', '.join(known)}"
        )
    return names
