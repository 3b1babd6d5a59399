"""Triplet losses on the hardest samples of a batch (arXiv 1703.07737).

Choices [the names are all that is documented]: Euclidean distances; margin_type "soft" is softplus(x), "hard" is
relu(x + margin); `k` keeps the k anchors of largest loss in the mean, all of them by default.
"""

import torch
import torch.nn.functional as F

from utils.errors import UserError


def batch_hard_triplet_loss(labels, embeddings, k: int | None = None, margin: float = 0.0, margin_type: str = "soft"):
    """Each anchor against its farthest sample of its label and its nearest of another; 0 if no anchor has both."""
    distance, same = _distances(embeddings), labels[:, None] == labels[None]  # (B, B)
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    furthest = distance.masked_fill(~positive, -torch.inf).amax(1)
    nearest = distance.masked_fill(same, torch.inf).amin(1)
    usable = positive.any(1) & (~same).any(1)
    return _hardest(_hinge(furthest[usable] - nearest[usable], margin, margin_type), k, embeddings)


def negative_only_triplet_loss(
    labels, embeddings, k: int | None = None, margin: float = 0.0, margin_type: str = "soft"
):
    """Only the second term: each anchor is pushed away from its nearest sample of another label."""
    distance, same = _distances(embeddings), labels[:, None] == labels[None]
    usable = (~same).any(1)
    nearest = distance.masked_fill(same, torch.inf).amin(1)[usable]
    return _hardest(_hinge(-nearest, margin, margin_type), k, embeddings)


def _distances(x: torch.Tensor) -> torch.Tensor:
    """(B, B); the floor keeps the gradient finite where two rows are equal."""
    squared = x.pow(2).sum(1)
    return (squared[:, None] + squared[None] - 2 * x @ x.T).clamp(min=1e-12).sqrt()


def _hinge(gap: torch.Tensor, margin: float, margin_type: str) -> torch.Tensor:
    if margin_type not in {"soft", "hard"}:
        raise UserError(f"triplet loss: margin_type is soft or hard, not '{margin_type}'")
    return F.softplus(gap) if margin_type == "soft" else (gap + margin).relu()


def _hardest(losses: torch.Tensor, k: int | None, embeddings: torch.Tensor) -> torch.Tensor:
    if not len(losses):
        return 0 * embeddings.sum()
    return losses.topk(min(k, len(losses))).values.mean() if k else losses.mean()
