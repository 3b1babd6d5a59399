"""Low-rank adapters (Hu et al., ICLR 2022, arXiv 2106.09685) on the linear weights of transformer blocks.

    W x  ->  (W + (scale / rank) B A) x,   A (rank, in) drawn, B (out, rank) zero at first, W frozen

They are parametrizations of the weight itself, so code that reads it, such as `nn.MultiheadAttention`, gets the sum.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from utils.errors import UserError, shown
from utils.free_memory import require

WEIGHTS = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # of a CLIP block


class LowRank(nn.Module):
    """W -> W + factor * B A."""

    def __init__(self, like: Tensor, rank: int, scale: float, generator: torch.Generator | None = None):
        super().__init__()
        rows, columns = like.shape
        drawn = torch.randn(rank, columns, generator=generator) / columns**0.5
        self.A = nn.Parameter(drawn.to(like.device, like.dtype))
        self.B = nn.Parameter(like.new_zeros(rows, rank))
        self.factor = scale / rank

    def forward(self, weight: Tensor) -> Tensor:
        return torch.addmm(weight, self.B, self.A, alpha=self.factor)


def _owner(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, weight = name.rpartition(".")
    return net.get_submodule(path), weight


def add_lora(net: nn.Module, rank: int, scale: float, generator: torch.Generator | None = None) -> list[str]:
    """Freeze `net` and add adapters to the weights of its blocks; returns the names of those weights."""
    if rank < 1:
        raise UserError(f"a rank of {rank} leaves nothing to train; use 1 or more")
    names = [name for name, _ in net.named_parameters() if name.endswith(WEIGHTS)]
    if not names:
        raise UserError(
            "low-rank adapters need transformer blocks, but this network does not have any; choose a ViT CLIP"
        )
    numbers = rank * sum(sum(parameter.shape) for name, parameter in net.named_parameters() if name.endswith(WEIGHTS))
    require(4 * 4 * numbers, f"--lora_rank {shown(rank)}, with gradients and Adam's two moments,", "lower it")
    net.requires_grad_(False)
    for name in names:
        module, weight = _owner(net, name)
        adapter = LowRank(getattr(module, weight), rank, scale, generator)
        parametrize.register_parametrization(module, weight, adapter)
    return names


def adapted(net: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """The sums W + factor * B A, by the names of the weights without adapters."""
    return {name: getattr(*_owner(net, name)) for name in names}


@torch.no_grad()
def fold_lora(net: nn.Module, names: list[str]) -> None:
    """Merge the adapters into the weights and remove them; all parameters require gradients again."""
    for name in names:
        module, weight = _owner(net, name)
        parametrize.remove_parametrizations(module, weight, leave_parametrized=True)
    net.requires_grad_(True)
