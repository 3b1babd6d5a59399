"""How many samples a pass without gradients takes at once."""

import torch

from utils.pair import Pair
from utils.settings import option

EVAL_BYTES = 64 * 2**20  # of one batch of inputs


def eval_batch_size(loader, args) -> int:
    """--eval_batch_size, or as many samples as EVAL_BYTES hold, at most 512."""
    if option(args, "eval_batch_size"):
        return args.eval_batch_size
    first = loader.dataset[0][0] if len(loader.dataset) else torch.zeros(1)
    parts = (first.image, first.text) if isinstance(first, Pair) else (first,)
    return int(min(512, max(1, EVAL_BYTES // sum(t.numel() * 4 for t in parts))))
