"""Mixup (arXiv 1710.09412): convex combinations of samples and of their labels.

Choices [the name is all that is documented]: a list of two (inputs, labels) pairs is mixed pair with pair, the first with
at least half the weight; a batch and its labels are mixed within themselves, in the form of `cutmix_data`.
"""

import numpy as np
import torch


def mixup(data, labels=None, alpha: float = 1.0):
    """mixup([(x1, y1), (x2, y2)], alpha=a): (x, y). mixup(x, y, a): (x, labels a, labels b, share of a)."""
    if isinstance(data, (list, tuple)):
        alpha = alpha if labels is None else float(labels)  # mixup(pairs, a)
        (first, of_first), (second, of_second) = data
        share = np.random.beta(alpha, alpha) if alpha > 0 else 1.0
        share = max(share, 1 - share)
        return tuple(share * a + (1 - share) * b for a, b in ((first, second), (of_first, of_second)))
    share = np.random.beta(alpha, alpha) if alpha > 0 else 1.0
    order = torch.randperm(len(data), device=data.device)
    return share * data + (1 - share) * data[order], labels, labels[order], share
