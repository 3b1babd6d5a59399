"""How many images went through a network."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import debug_unwrap


class ForwardCounter:
    """Counts the images that a module is called with; copies of the module use the same counter."""

    def __init__(self):
        self.images = 0

    def __call__(self, module: nn.Module, inputs: tuple) -> None:
        if inputs:
            self.add(inputs[0])

    def add(self, batch) -> None:
        """Count a batch: a tensor, a Pair, or a tuple of tensors such as Tokens; under vmap its whole batch."""
        first = batch[0] if isinstance(batch, tuple) else getattr(batch, "image", batch)
        plain = torch.compiler.is_compiling() or not isinstance(first, torch.Tensor)
        whole = first if plain else debug_unwrap(first)
        self.images += len(first) if whole is first else len(first) * whole.numel() // first.numel()

    def __deepcopy__(self, memo: dict) -> ForwardCounter:
        return self

    def state(self) -> int:
        return self.images

    def load_state(self, state: int) -> None:
        self.images = state
