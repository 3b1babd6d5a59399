"""What can happen to training labels before a task sees them: noise, missing labels, a held-out part."""

import numpy as np
import torch

from utils.errors import UserError
from utils.randomness import generator
from utils.settings import option

# class -> class it is mistaken for
ASYMMETRIC_CIFAR10 = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}  # truck-car, bird-plane, cat-dog, dog-cat, deer-horse


def symmetric_noise(targets: torch.Tensor, rate: float, n_classes: int, seed: int) -> torch.Tensor:
    """Give exactly round(rate * n_c) images of each class another class, drawn uniformly."""
    rng, noisy = np.random.RandomState(seed % 2**32), targets.clone()
    for label in targets.unique():
        rows = torch.nonzero(targets == label).flatten()
        wrong = rows[rng.permutation(len(rows))[: round(len(rows) * rate)]]
        noisy[wrong] = (label + torch.as_tensor(rng.randint(1, n_classes, len(wrong)))) % n_classes
    return noisy


def asymmetric_noise(targets: torch.Tensor, rate: float, mistaken_for: dict[int, int], seed: int) -> torch.Tensor:
    """Give round(rate * n_c) images of each listed class the class it is mistaken for."""
    rng, noisy = np.random.RandomState(seed % 2**32), targets.clone()
    for label, other in sorted(mistaken_for.items()):
        rows = torch.nonzero(targets == label).flatten()
        noisy[rows[rng.permutation(len(rows))[: round(len(rows) * rate)]]] = other
    return noisy


def unlabelled(targets: torch.Tensor, share: float, n_classes: int, by_class: bool, seed: int) -> torch.Tensor:
    """Mask of the images that lose their label; at least one image of each class keeps it.

    By class, every class keeps `share` of its images; by task, every class keeps the same number,
    share * (images of the task) / (classes of the task), as far as it has them.
    """
    rng, keep = np.random.RandomState(seed % 2**32), torch.zeros(len(targets), dtype=torch.bool)
    for label in targets.unique():
        rows = torch.nonzero(targets == label).flatten()
        count = int(share * len(rows)) if by_class else int(share * len(targets) / max(n_classes, 1))
        keep[rows[rng.permutation(len(rows))[: max(1, count)]]] = True
    return ~keep


def validation_mask(targets: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """Mask of the images held out: ceil(share * n_c) of each class; `share` above 1 is a percentage."""
    share = share / 100 if share >= 1 else share
    held = torch.zeros(len(targets), dtype=torch.bool)
    for label in targets.unique():
        rows = torch.nonzero(targets == label).flatten()
        count = -int(-len(rows) * share // 1)
        if count >= len(rows):
            raise UserError(
                f"--validation leaves no training image of class {int(label)} ({len(rows)} images); lower it"
            )
        held[rows[torch.randperm(len(rows), generator=generator(seed, "validation", int(label)))[:count]]] = True
    return held


def noisy_targets(setting, targets: torch.Tensor, seed: int) -> torch.Tensor:
    """Labels of which a fraction --noise_rate is wrong."""
    rate = option(setting.args, "noise_rate", 0.0)
    if not rate:
        return targets
    if option(setting.args, "noise_type", "symmetric") == "symmetric":
        return symmetric_noise(targets, rate, setting.N_CLASSES, seed)
    if setting.MISTAKEN_FOR is None:
        raise UserError(f"--noise_type asymmetric: {setting.NAME} has no table of confusable classes; use symmetric")
    order = getattr(setting.args, "class_order", None)
    place = np.arange(setting.N_CLASSES) if order is None else np.asarray(order)
    table = {int(place[a]): int(place[b]) for a, b in setting.MISTAKEN_FOR.items()}
    return asymmetric_noise(targets, rate, table, seed)


def drop_labels(setting, split, task: int, seed: int) -> None:
    """Set to -1 the labels of the samples that --label_perc_by_task or --label_perc_by_class leaves out."""
    by_task, by_class = option(setting.args, "label_perc", 1.0), option(setting.args, "label_perc_by_class", 1.0)
    if by_task < 1 and by_class < 1:
        raise UserError("give --label_perc_by_task or --label_perc_by_class, not both")
    setting.unlabeled_mask = None
    if min(by_task, by_class) < 1:
        first, end = setting.get_offsets(task)
        setting.unlabeled_mask = unlabelled(
            split.targets, min(by_task, by_class), end - first, by_class < 1, seed + task
        )
        split.targets[setting.unlabeled_mask] = -1
