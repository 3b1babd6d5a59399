"""Eight backgrounds, drawn once per seed as a small bank of pictures from which renders cut their own window."""

from __future__ import annotations

import functools

import numpy as np

from datasets.tiny_world.rng import uniform

SCENES = ("paper", "meadow", "sea", "night", "desert", "snow", "brick wall", "forest")
SCENE_PHRASES = (
    "on paper",
    "in a meadow",
    "in the sea",
    "at night",
    "in the desert",
    "in the snow",
    "on a brick wall",
    "in the forest",
)
SIZE = 64  # side of a bank picture; a window of the picture size is cut from it
N_PICTURES = 16  # per scene


def _mix(mask: np.ndarray, a: list[float], b: list[float]) -> np.ndarray:
    """Colour a where mask is 1, b where 0: (3, S, S)."""
    a, b = np.array(a)[:, None, None], np.array(b)[:, None, None]
    return a * mask + b * (1 - mask)


def _dots(x: np.ndarray, y: np.ndarray, seed: int, key: int, n: int, radius: float) -> np.ndarray:
    """n small discs at random places."""
    u = uniform(seed, np.arange(2 * n) + 1000 * key, "scene dots").reshape(2, n, 1, 1) * SIZE
    return (((x - u[0]) ** 2 + (y - u[1]) ** 2) < radius**2).any(0).astype(float)


def _picture(scene: int, seed: int, key: int) -> np.ndarray:
    """One background in [0, 1]: (3, SIZE, SIZE)."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(float)
    r = uniform(seed, np.arange(8) + 8 * key, "scene") * 2 - 1
    wave = np.sin(x / (4 + r[0]) + 3 * r[1])
    grain = uniform(seed, np.arange(SIZE * SIZE) + SIZE * SIZE * key, "scene grain").reshape(SIZE, SIZE) - 0.5
    horizon = 24 + 5 * r[2]
    ground = (y > horizon).astype(float)
    name = SCENES[scene]
    if name == "paper":
        img = _mix(((y + 8 * r[3]) % 10 < 1).astype(float), [0.72, 0.8, 0.9], [0.96, 0.95, 0.9])
    elif name == "meadow":
        blades = ((x + 3 * r[3] + np.floor(y / 4) * 2.3) % 5 < 1.2) * (y % 4 < 3)
        img = _mix(ground, [0.42, 0.72, 0.28], [0.68, 0.87, 0.98]) - 0.16 * ground * blades
    elif name == "sea":
        crest = ((y + 1.5 * wave) % 8 < 1.3) * ground
        img = _mix((y > horizon - 10).astype(float), [0.2, 0.5, 0.75], [0.8, 0.92, 0.97]) + 0.22 * crest
    elif name == "night":
        img = _mix((y > 52 + 3 * wave).astype(float), [0.05, 0.06, 0.1], [0.08, 0.09, 0.24])
        img = img + 0.75 * _dots(x, y, seed, key, 22, 0.9)
    elif name == "desert":
        dune = (y > horizon + 8 + 5 * np.sin(x / 13 + 3 * r[3])).astype(float)
        img = _mix(ground, [0.88, 0.72, 0.42], [0.98, 0.9, 0.7]) - 0.12 * dune
    elif name == "snow":
        img = _mix(ground, [0.95, 0.96, 0.99], [0.66, 0.72, 0.8]) + 0.3 * _dots(x, y, seed, key, 40, 1.3)
    elif name == "brick wall":
        row = np.floor((y + 4 * r[3]) / 8)
        mortar = (((y + 4 * r[3]) % 8 < 1.2) | ((x + 7 * (row % 2) + 5 * r[4]) % 14 < 1.2)).astype(float)
        img = _mix(mortar, [0.8, 0.76, 0.72], [0.66, 0.33, 0.25]) + 0.05 * np.sin(row * 2.4 + np.floor(x / 14))
    else:
        trunks = ((x + 6 * r[3] + 1.5 * np.sin(y / 9)) % 13 < 4).astype(float)
        img = _mix(trunks, [0.34, 0.24, 0.15], [0.16, 0.36, 0.17]) + 0.12 * (grain > 0.25)
    return np.clip(img * (1 + 0.08 * r[5]) + 0.05 * grain, 0, 1)


@functools.lru_cache(maxsize=2)
def scene_bank(seed: int) -> np.ndarray:
    """uint8 of (8 * N_PICTURES, 3, SIZE, SIZE)."""
    pictures = [_picture(s, seed, s * N_PICTURES + v) for s in range(len(SCENES)) for v in range(N_PICTURES)]
    return np.floor(np.stack(pictures) * 255 + 0.5).astype(np.uint8)
