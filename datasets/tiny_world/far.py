"""A domain far from pre-training: stained tissue, 40 classes = 5 weaves x 8 kinds of cell, under invented names.

Each image shows one cell in a clear disc on a woven ground. Nothing of it is in the images or captions of the rest of
the world: no objects or scenes, other textures and colors (three stains on a slide), and names that no caption has.
Pixels are table look-ups and single operations, as in `render`, so bytes do not depend on the machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

from datasets.tiny_world.rng import integers, permutation, uniform

SIDE = 48
CELLS = 1  # per image
WEAVES, KINDS = 5, 8
SEED, NAME_SEED = 5000, 31  # of the images, far from those of all other streams; and of the names
PER_CLASS = {True: 100, False: 30}  # images for train and test
TEST_OFFSET = 1 << 24
CHUNK = 64
NOISE = 1 << 17
SYLLABLES = tuple(c + v for c in "bdfgklmnprstvz" for v in "aeiou")


def names() -> list[str]:
    """40 invented words of three syllables, all different."""
    n = WEAVES * KINDS
    draws = [permutation(NAME_SEED, len(SYLLABLES), f"syllable {i}")[:n] for i in range(3)]
    return ["".join(SYLLABLES[i] for i in word) for word in zip(*draws, strict=True)]


def _frac(x: np.ndarray) -> np.ndarray:
    return x - np.floor(x)


def _tri(x: np.ndarray) -> np.ndarray:
    """Zigzag between 0 and 1 of period 1."""
    return np.abs(2 * _frac(x) - 1)


# of coordinates in periods (any offset), each a share of the darker stain
WEAVE: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda x, y: _frac(np.maximum(np.abs(x), np.abs(y)) * 0.9) < 0.5,  # nested squares
    lambda x, y: _frac(x * y * 0.35) < 0.5,  # hyperbolas
    lambda x, y: _tri(x * 0.7) * _tri(y * 0.7) > 0.3,  # beads
    lambda x, y: _frac(y + 2 * _tri(x * 0.25) * _tri(x * 0.25 + 0.5)) < 0.4,  # fans
    lambda x, y: _frac(x + np.where(_frac(np.floor(x) * 0.3819 + np.floor(y) * 0.7236) < 0.5, y, -y)) < 0.4,  # maze
)
# of coordinates in radii
CELL: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda u, v: (u * u + v * v < 1) & (u * u + v * v > 0.3),  # ring
    lambda u, v: (u * u + v * v < 1) & ((u - 0.5) * (u - 0.5) + v * v > 0.6),  # crescent
    lambda u, v: (np.abs(u) < 1.2) & (np.abs(v) < 0.4),  # rod
    lambda u, v: ((np.abs(u) < 1.1) & (np.abs(v) < 0.3)) | ((np.abs(v) < 1.1) & (np.abs(u) < 0.3)),  # cross
    lambda u, v: (np.abs(u) - 0.75) * (np.abs(u) - 0.75) + v * v < 0.25,  # pair
    lambda u, v: (u * u + v * v < 1.2) & (v > 0.1),  # half
    lambda u, v: (np.abs(u) + np.abs(v) < 1.2) & (np.abs(u) + np.abs(v) > 0.65),  # frame
    lambda u, v: (np.abs(u) < 1) & (np.abs(v) < 0.75) & (np.abs(v) > 0.25),  # two rods
)


@functools.lru_cache(maxsize=1)
def _noise() -> np.ndarray:
    return (sum(uniform(SEED, np.arange(NOISE), f"far noise {i}") for i in range(3)) - 1.5).astype(np.float32)


def draw(seed: int, index: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    """uint8 images (B, 3, 48, 48) of the given classes."""
    parts = [_chunk(seed, index[i : i + CHUNK], labels[i : i + CHUNK]) for i in range(0, len(index), CHUNK)]
    return torch.from_numpy(np.concatenate(parts))


def _chunk(seed: int, index: np.ndarray, labels: np.ndarray) -> np.ndarray:
    def unit(field: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        return (low + (high - low) * uniform(seed, index, field)).astype(np.float32)[:, None, None]

    axis = np.arange(SIDE, dtype=np.float32)
    x, y = (axis[None, None, :] - unit("far x", 12, 36)), (axis[None, :, None] - unit("far y", 12, 36))
    lean, period = unit("far lean", -0.1, 0.1), unit("far period", 7.0, 8.5)
    x, y = (x + lean * y) / period, (y - lean * x) / period
    weave = np.zeros((len(index), SIDE, SIDE), dtype=bool)
    for number in np.unique(labels // KINDS):
        rows = labels // KINDS == number
        weave[rows] = WEAVE[number](x[rows], y[rows])
    cells, halo = np.zeros_like(weave), np.zeros_like(weave)
    for place in range(CELLS):
        mask, around = _cell(seed, index, labels % KINDS, place, axis)
        cells, halo = cells | mask, halo | around
    weave &= ~halo
    stains = np.array([[0.93, 0.85, 0.9], [0.8, 0.55, 0.74], [0.3, 0.16, 0.5]], dtype=np.float32)
    tint = np.stack([uniform(seed, index, f"far tint {i}") for i in range(9)], 1).astype(np.float32).reshape(-1, 3, 3)
    color = (stains[None] + 0.12 * (tint - 0.5))[..., None, None]  # (B, stain, 3, 1, 1)
    img = np.where(weave[:, None], color[:, 1], color[:, 0])
    img = np.where(cells[:, None], color[:, 2], img) * unit("far light", 0.8, 1.1)[:, None]
    start = integers(seed, index, "far grain", NOISE - 3 * SIDE * SIDE)
    grain = _noise()[start[:, None] + np.arange(3 * SIDE * SIDE)].reshape(-1, 3, SIDE, SIDE)
    return np.floor(np.clip(img + 0.06 * grain, 0, 1) * 255 + 0.5).astype(np.uint8)


def _cell(
    seed: int, index: np.ndarray, kind: np.ndarray, place: int, axis: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The masks of one cell of each image, somewhere, mirrored or not, and of the clear disc around it."""
    slot = index * CELLS + place
    cx, cy = ((16 + 16 * uniform(seed, slot, f"far cell {a}")).astype(np.float32)[:, None, None] for a in "xy")
    radius = (11.0 + 2.0 * uniform(seed, slot, "far radius")).astype(np.float32)[:, None, None]
    u, v = np.broadcast_arrays((axis[None, None, :] - cx) / radius, (axis[None, :, None] - cy) / radius)
    u = np.where((uniform(seed, slot, "far mirror") < 0.5)[:, None, None], -u, u)
    mask = np.zeros(u.shape, dtype=bool)
    for number in np.unique(kind):
        mask[kind == number] = CELL[number](u[kind == number], v[kind == number])
    return mask, u * u + v * v < 1.7


def classes() -> np.ndarray:
    """The class (weave * KINDS + kind of cell) of each label: shuffled, so that a task mixes weaves and cells."""
    return permutation(NAME_SEED, WEAVES * KINDS, "far classes")


def far_tiny(train: bool, seed: int = 0) -> dict:
    """Images and labels, classes by turns."""
    labels = np.tile(np.arange(WEAVES * KINDS), PER_CLASS[train])
    index = np.arange(len(labels)) + (0 if train else TEST_OFFSET)
    return {"images": draw(SEED + 100 * seed, index, classes()[labels]), "labels": torch.from_numpy(labels)}
