"""A held-out part of a torch dataset, for files that cut it themselves; `--validation` does it for every dataset."""

import copy

import torch

from utils.errors import UserError
from utils.randomness import generator


def get_train_val(train, test_transform, dataset: str, val_perc: float = 0.1):
    """(train, validation) copies of a torch dataset with `data` and `targets`; the second has `test_transform`.

    Choice: the rows are drawn from the dataset's name alone, so every run and seed holds out the same ones.
    """
    if not 0 < val_perc < 1:
        raise UserError(f"get_train_val: val_perc must be a fraction between 0 and 1, not {val_perc}")
    order = torch.randperm(len(train.targets), generator=generator("validation", dataset))
    held = round(len(order) * val_perc)
    parts = copy.copy(train), copy.copy(train)
    for part, rows in zip(parts, (order[held:].sort().values, order[:held].sort().values), strict=True):
        for name in ("data", "targets"):
            values = getattr(train, name)
            chosen = [values[i] for i in rows.tolist()] if isinstance(values, (list, tuple)) else values[rows.numpy()]
            setattr(part, name, chosen)
    parts[1].transform = test_transform
    return parts
