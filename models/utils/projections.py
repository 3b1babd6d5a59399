"""Linear maps that are summed over tasks, of which the newest is trained, and a contrast of images with their texts."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class SummedLinear(nn.Module):
    """sum_t (W_t x + b_t): one map, as all but the newest are added up and frozen.

    init "linear": torch's own for a linear layer. "identity": the first map changes nothing, later ones add nothing.
    """

    def __init__(self, dim: int, init: str = "linear"):
        super().__init__()
        self.newest, self.init = nn.Linear(dim, dim), init
        self.register_buffer("weight", torch.zeros(dim, dim))
        self.register_buffer("bias", torch.zeros(dim))
        if init == "identity":
            nn.init.eye_(self.newest.weight)
            nn.init.zeros_(self.newest.bias)

    @torch.no_grad()
    def grow(self) -> None:
        """Freeze the newest map and begin another."""
        self.weight += self.newest.weight
        self.bias += self.newest.bias
        if self.init == "identity":
            nn.init.zeros_(self.newest.weight)
            nn.init.zeros_(self.newest.bias)
        else:
            self.newest.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight + self.newest.weight, self.bias + self.newest.bias)


def paired_contrast(images: Tensor, texts: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """Mean of both directions of CLIP's loss for unit rows (B, D); rows of equal labels are all each other's pair."""
    logits, same = scale * images @ texts.T, (labels[:, None] == labels).to(images.dtype)
    target = same / same.sum(1, keepdim=True)
    return -((logits.log_softmax(1) + logits.T.log_softmax(1)) * target).sum(1).mean() / 2
