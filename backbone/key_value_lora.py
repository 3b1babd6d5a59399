"""Low-rank adapters on the key and value products of attention alone; queries, outputs and MLPs stay frozen."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class KeyValueLora(nn.Module):
    """W (3D, D) of queries, keys, values -> W + factor * [0 ; B_k A_k ; B_v A_v], B zero at first."""

    def __init__(self, width: int, rank: int, scale: float):
        super().__init__()
        self.A = nn.Parameter(torch.randn(2, rank, width) / width**0.5)
        self.B = nn.Parameter(torch.zeros(2, width, rank))
        self.factor = scale / rank

    def forward(self, weight: Tensor) -> Tensor:
        width = weight.shape[1]
        return torch.cat([weight[:width], weight[width:] + self.factor * (self.B @ self.A).flatten(0, 1)])


def add_key_value_lora(blocks: Iterable[nn.Module], rank: int, scale: float) -> None:
    """Adapters in each block of CLIP's."""
    for block in blocks:
        weight = block.attn.in_proj_weight
        adapter = KeyValueLora(weight.shape[1], rank, scale).to(weight.device)
        parametrize.register_parametrization(block.attn, "in_proj_weight", adapter)
