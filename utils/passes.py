"""Passes over plain images: no augmentation, normalized, in the order of the split."""

from collections.abc import Iterator

import torch

from utils.pair import Inputs, Pair
from utils.settings import option

EVAL_BYTES = 64 * 2**20  # of one batch of inputs


def normalized(images: Inputs, normalization) -> Inputs:
    """Images in [0, 1] as the network takes them; the text of a Pair stays."""
    if normalization is None:
        return images
    return Pair(normalization(images.image), images.text) if isinstance(images, Pair) else normalization(images)


def plain_batches(model, dataset, normalize: bool = True) -> Iterator[tuple[Inputs, torch.Tensor]]:
    """(inputs, labels) on the model's device, of all training images of the task; label -1 where it is unknown."""
    for images, labels in dataset.train_loader.plain():
        images = normalized(images, model.normalization_transform) if normalize else images
        yield images.to(model.device), labels.to(model.device)


def eval_batch_size(loader, args) -> int:
    """--eval_batch_size, or as many samples as fit EVAL_BYTES, at most 512."""
    if option(args, "eval_batch_size"):
        return args.eval_batch_size
    first = loader.dataset[0][0] if len(loader.dataset) else torch.zeros(1)
    parts = (first.image, first.text) if isinstance(first, Pair) else (first,)
    return int(min(512, max(1, EVAL_BYTES // sum(t.numel() * 4 for t in parts))))
