"""Replay memories of numbered samples."""

import torch

from utils.memory.buffer import Buffer


def numbered(start: int, stop: int) -> torch.Tensor:
    """Samples that carry their own number: (n, 1)."""
    return torch.arange(start, stop, dtype=torch.float32)[:, None]


def fill(buffer: Buffer, n: int, batches=(1, 4, 3, 7), **columns) -> Buffer:
    """Offer samples 0..n-1 in batches of several sizes; a column is a function of the sample numbers."""
    start, turn = 0, 0
    while start < n:
        stop = min(n, start + batches[turn % len(batches)])
        numbers = numbered(start, stop)
        buffer.add_data(numbers, **{name: function(numbers[:, 0]) for name, function in columns.items()})
        start, turn = stop, turn + 1
    return buffer


def stored(buffer: Buffer) -> list[int]:
    return buffer.get_all_data()[0][:, 0].int().tolist()
