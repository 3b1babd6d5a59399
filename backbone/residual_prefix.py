"""Key-value prefixes with a softmax of their own, added to attention: zero values leave the network as it is.

    attention(q, k, v) + w attention(q, P_k, P_v)      P_k ~ U(-1, 1), P_v = 0 at first, a pair for each task

w is one number, or one for each image; 0 leaves the frozen block. Keys and values are those inside the heads.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from backbone.attention import attend
from utils import ranks


class ResidualPrefix(nn.Module):
    """In place of a block's `nn.MultiheadAttention`, sequence first."""

    def __init__(self, attn: nn.MultiheadAttention, tasks: int, length: int):
        super().__init__()
        self.attn, shape = attn, (tasks, length, attn.embed_dim)
        device = attn.out_proj.weight.device
        self.keys = nn.ParameterList((2 * torch.rand(shape[1:]) - 1).to(device) for _ in range(tasks))
        self.values = nn.ParameterList(torch.zeros(shape[1:], device=device) for _ in range(tasks))
        self.task: Tensor | int = 0  # of all images or of each (B,)
        self.weight: Tensor | float = 1.0

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options) -> tuple[Tensor, Tensor | None]:
        out, shares = self.attn(query, key, value, **options)
        weight = ranks.here(self.weight)
        if isinstance(weight, float) and weight == 0:
            return out, shares
        width, batch = self.attn.embed_dim, query.shape[1]
        q = linear(query, self.attn.in_proj_weight[:width], self.attn.in_proj_bias[:width]).transpose(0, 1)
        mixed = attend(q, self.chosen(self.keys, batch), self.chosen(self.values, batch), self.attn.num_heads)
        mixed = (weight[:, None, None] if isinstance(weight, Tensor) else weight) * mixed
        return out + linear(mixed, self.attn.out_proj.weight).transpose(0, 1), shares

    def chosen(self, prefixes: nn.ParameterList, batch: int) -> Tensor:
        """(B, P, W) of the task of each image."""
        task = ranks.here(self.task)
        if isinstance(task, Tensor):
            return torch.stack(list(prefixes))[task]
        return prefixes[task].expand(batch, -1, -1)


def add_residual_prefixes(blocks: Iterable[nn.Module], tasks: int, length: int) -> list[ResidualPrefix]:
    """Prefixes in each block; returns them."""
    made = []
    for block in blocks:
        block.attn = ResidualPrefix(block.attn, tasks, length)
        made.append(block.attn)
    return made
