"""Progressive networks (arXiv 1606.04671): a new column of layers that reads the frozen columns of earlier tasks.

h_i = f( W_i h_{i-1} + U_i relu( V_i [alpha_j h^j_{i-1} for the old columns j] ) )        -> `Lateral`
"""

import torch
from torch import Tensor, nn


class AlphaModule(nn.Module):
    """x * alpha, with one learned number for each entry of `shape`."""

    def __init__(self, shape):
        super().__init__()
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.alpha = nn.Parameter(torch.rand(1, *shape) * 0.1)  # small at random

    def forward(self, x: Tensor) -> Tensor:
        return x * self.alpha


class ListModule(nn.ModuleList):
    """Modules added one by one, indexed by number."""

    def __init__(self, *modules: nn.Module):
        super().__init__(modules)


class Lateral(nn.Module):
    """From the layers of the old columns to the next layer of the new one; `layer(n_in, n_out, last)` makes V and U."""

    def __init__(self, widths: list[int], out: int, layer, dims: int):
        super().__init__()
        self.alphas = ListModule(*(AlphaModule([1] * (dims - 1)) for _ in widths))
        self.reduce, self.expand = layer(sum(widths), widths[0], False), layer(widths[0], out, True)

    def forward(self, old: list[Tensor]) -> Tensor:
        scaled = [alpha(h) for alpha, h in zip(self.alphas, old, strict=True)]
        return self.expand(self.reduce(torch.cat(scaled, dim=1)).relu())
