"""A stream of tiny images, and networks small enough to follow by hand."""

from argparse import Namespace

import torch
from torch import nn

from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.samples import ArraySamples
from utils.pair import Pair

DEFAULTS = {
    "lr": 0.1,
    "optimizer": "sgd",
    "batch_size": 8,
    "minibatch_size": 4,
    "buffer_size": 12,
    "n_epochs": 1,
    "seed": 0,
    "device": "cpu",
    "debug_mode": False,
    "inference_only": False,
    "non_verbose": True,
    "alpha": 0.5,
    "beta": 0.7,
    "single_forward": False,
    "opt_wd": 0.0,
    "memory_rule": "shared",
    "lr_scheduler": None,
    "scheduler_mode": "epoch",
    "n_iters": None,
}


def toy_args(**changes) -> Namespace:
    return Namespace(**{**DEFAULTS, **changes})


class ToyStream(ContinualDataset):
    """Classes 0..5 in tasks of 3, 1 and 2; images of 1 x 2 x 3 bytes; class c has 7 + c of them."""

    NAME = "toy"
    SETTING = "class-il"
    N_TASKS = 3
    N_CLASSES_PER_TASK = [3, 1, 2]
    SIZE = (2, 3)

    def load(self, train: bool) -> ArraySamples:
        draw = torch.Generator().manual_seed(int(train))
        labels = torch.cat([torch.full((7 + c if train else 4,), c) for c in range(6)])
        labels = labels[torch.randperm(len(labels), generator=draw)]
        images = torch.randint(0, 256, (len(labels), 1, 2, 3), generator=draw)
        return ArraySamples(((images + 20 * labels.view(-1, 1, 1, 1)) % 256).to(torch.uint8), labels)


class ToyDomains(ToyStream):
    """The same six classes in each of two domains."""

    NAME = "toy-domains"
    SETTING = "domain-il"
    N_TASKS = 2
    N_CLASSES_PER_TASK = 6


class Linear(nn.Module):
    """Flatten, optionally BatchNorm, one linear layer; features are what enters the linear layer."""

    def __init__(self, inputs: int, classes: int, norm: bool = False, seed: int = 0):
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs) if norm else nn.Identity()
        self.classifier = nn.Linear(inputs, classes)
        draw = torch.Generator().manual_seed(seed)
        for parameter in self.classifier.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw)

    def forward(self, x, returnt: str = "out"):
        if isinstance(x, Pair):
            x = torch.cat((x.image.flatten(1), x.text.float()), dim=1)
        features = self.norm(x.flatten(1))
        return features if returnt == "features" else self.classifier(features)


def random_pairs(n: int, seed: int = 0) -> Pair:
    """Byte-valued images (n, 1, 2, 3) in [0, 1] with token ids (n, 4)."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 2, 3), generator=draw).float() / 255
    return Pair(images, torch.randint(0, 50, (n, 4), generator=draw))
