"""Picture world, six domains with their own names and prompts; scored as MTIL, the domain known at test time"""

from argparse import Namespace
from typing import Literal

import torch

from datasets.tiny_world import streams
from datasets.utils import tiny_streams
from datasets.utils.continual_dataset import ContinualDataset, fix_class_names_order
from datasets.utils.samples import ArraySamples


class MtilTiny(ContinualDataset):
    """--mtil_order I is alphabetical, II is not. A domain's images are scored among the domain's own names, and where
    the method can name unseen classes, also those of domains not yet trained (Zheng et al. 2023, arXiv 2303.06628)."""

    NAME = "mtil-tiny"
    SETTING = "class-il"
    MTIL = True
    N_TASKS = len(streams.MTIL_DOMAINS)
    N_CLASSES_PER_TASK = [len(streams.mtil_names(domain)) for domain in streams.MTIL_ORDERS["I"]]
    SIZE = tiny_streams.SIZE
    MEAN, STD = tiny_streams.MEAN, tiny_streams.STD
    TRANSFORM = tiny_streams.CROP
    TEMPLATES = list(streams.TEMPLATES)
    DEFAULTS = tiny_streams.DEFAULTS | {"backbone": "clip-visual"}

    def __init__(self, args: Namespace, mtil_order: Literal["I", "II"] = "I", picture_seed: int = 0):
        self.domains = streams.MTIL_ORDERS[mtil_order]
        self.picture_seed = picture_seed
        names = [streams.mtil_names(domain) for domain in self.domains]
        self.CLASS_NAMES = [name for group in names for name in group]
        self.N_CLASSES_PER_TASK = [len(group) for group in names]
        self.domain_sizes = tuple(self.N_CLASSES_PER_TASK)
        super().__init__(args)

    def class_templates(self) -> list[list[str]]:
        each = [
            streams.mtil_templates(d) for d, n in zip(self.domains, self.domain_sizes, strict=True) for _ in range(n)
        ]
        return fix_class_names_order(each, self.args)

    def load(self, train: bool) -> ArraySamples:
        images, labels, first = [], [], 0
        for domain, size in zip(self.domains, self.domain_sizes, strict=True):
            tensors = self._domain(domain, train)
            images.append(tensors["images"])
            labels.append(tensors["labels"] + first)
            first += size
        return ArraySamples(torch.cat(images), torch.cat(labels))

    def _domain(self, domain: str, train: bool) -> dict[str, torch.Tensor]:
        def build():
            found = streams.mtil_tiny(domain, train, self.picture_seed)
            return {"images": found["images"], "labels": found["labels"]}, {}

        return tiny_streams.drawn(self.args, f"{self.NAME}-{domain}", train, (self.picture_seed,), build)[0]
