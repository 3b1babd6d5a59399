"""A pass over a task's training images as they are: no augmentation, normalised, in the order of the split."""

from collections.abc import Iterator

import torch

from utils.pair import Inputs, Pair


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
