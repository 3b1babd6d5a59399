"""What is in a picture: the names, the gaps in pre-training, and the sampling of scene descriptions."""

from __future__ import annotations

import functools

import numpy as np

from datasets.tiny_world.bank import FULL, KINDS, N_VARIANTS
from datasets.tiny_world.rng import choice, integers, permutation, uniform
from datasets.tiny_world.scenes import N_PICTURES, SCENES

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PATTERNS = ("plain", "striped", "dotted", "checked", "faded", "outlined")  # of objects
TEXTURES = ("striped", "dotted", "checked", "faded", "zigzag", "wavy", "ringed", "woven", "speckled", "crossed")
TEXTURE_IDS = (1, 2, 3, 4, 6, 7, 8, 9, 10, 11)  # texture name -> pattern number of the renderer
STYLES = ("flat", "mosaic", "sketch", "pale", "dark", "noisy", "blurred", "warped", "stitched")
N_TRAINED_STYLES = 5  # the first five are seen in pre-training, the others never
COUNTS = ("one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")  # of the first object to the second
SINGLE, COUNT, PAIR, EMPTY, TEXTURE, DIGIT = range(6)  # layouts

HELD_OUT_SEED = 20  # fixes which combinations pre-training never shows
LAYOUT_WEIGHTS = (0.665, 0.145, 0.165, 0.02, 0.005, 0.0)  # textures: a few captions only; digits: none


@functools.lru_cache(maxsize=1)
def held_out_patterns() -> np.ndarray:
    """(60, 2) kind and pattern of the pairs never shown in pre-training: 10 per pattern, one or two per kind."""
    order = permutation(HELD_OUT_SEED, len(KINDS), "kinds")
    slots = np.concatenate([order, order[:20]])
    return np.stack([slots, np.arange(60) % 6], 1)


@functools.lru_cache(maxsize=1)
def held_out_colours() -> np.ndarray:
    """(40, 10) True where the kind is never shown in that colour in pre-training: 100 pairs."""
    mask = np.zeros(len(KINDS) * len(COLOURS), dtype=bool)
    mask[permutation(HELD_OUT_SEED, mask.size, "colours")[:100]] = True
    return mask.reshape(len(KINDS), len(COLOURS))


def _table(allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per row the allowed columns, first in line, and their number."""
    return np.argsort(~allowed, axis=1, kind="stable"), allowed.sum(1)


@functools.lru_cache(maxsize=1)
def _permitted() -> tuple:
    patterns = np.ones((len(KINDS), len(PATTERNS)), dtype=bool)
    patterns[tuple(held_out_patterns().T)] = False
    return _table(patterns), _table(~held_out_colours())


def _pick(table: tuple[np.ndarray, np.ndarray], row: np.ndarray, u: np.ndarray) -> np.ndarray:
    order, count = table
    return order[row, np.minimum((u * count[row]).astype(np.int64), count[row] - 1)]


def sample(seed: int, index: np.ndarray, bank_seed: int = 0, **fixed: np.ndarray | int) -> dict[str, np.ndarray]:
    """Scene descriptions for `index`, as columns. A keyword (layout, kind, pattern, colour, count, relation, scene,
    style, scale, zoom of the pattern: scalar or array; kind, pattern and colour may be (B, 2)) replaces what would
    be drawn.

    Pairs come as twins: indices 2k and 2k + 1 show the same two objects in opposite relations, so that a batch of
    consecutive indices teaches order.
    """
    index = np.asarray(index, dtype=np.int64)
    n = len(index)

    def column(name: str, drawn: np.ndarray) -> np.ndarray:
        value = fixed.get(name)
        if value is None:
            return drawn
        value = np.asarray(value)
        if drawn.ndim == 2 and value.ndim == 1:
            value = value[:, None]
        return np.broadcast_to(value, drawn.shape).copy()

    layout = column("layout", choice(seed, index // 2, "layout", LAYOUT_WEIGHTS))
    twin = np.where(layout == PAIR, index // 2 + (1 << 40), index)  # what both twins share
    first = integers(seed, twin, "kind", len(KINDS))
    other = (first + 1 + integers(seed, twin, "kind 2", len(KINDS) - 1)) % len(KINDS)
    kind = column("kind", np.stack([first, other], 1))
    u = np.stack([uniform(seed, twin, "pattern"), uniform(seed, twin, "pattern 2")], 1)
    pattern = column("pattern", _pick(_permitted()[0], np.minimum(kind, FULL - 1), u))
    u = np.stack([uniform(seed, twin, "colour"), uniform(seed, twin, "colour 2")], 1)
    colour = column("colour", _pick(_permitted()[1], np.minimum(kind, FULL - 1), u))
    relation = column("relation", integers(seed, index // 2, "relation", 4) ^ (index % 2))
    count = np.where(layout == COUNT, 2 + integers(seed, index, "count", 3), 1)
    count = column("count", np.where(layout == PAIR, 2, np.where(layout == EMPTY, 0, count)))
    texture = np.array(TEXTURE_IDS)[integers(seed, index, "texture", len(TEXTURE_IDS))]
    is_texture = layout == TEXTURE
    kind[is_texture] = FULL
    if "pattern" not in fixed:
        pattern[is_texture] = texture[is_texture, None]
        pattern[layout == DIGIT] = 0
    spec = {
        "index": index,
        "layout": layout,
        "kind": kind,
        "pattern": pattern,
        "colour": colour,
        "relation": relation,
        "count": count,
        "scene": column("scene", integers(seed, index, "scene", len(SCENES))),
        "style": column("style", choice(seed, index, "style", (0.68, 0.1, 0.07, 0.08, 0.07))),
    }
    spec |= _pose(seed, index, spec, column)
    spec["variant"] = (kind * N_VARIANTS + integers(seed, index, "variant", N_VARIANTS)[:, None]).astype(np.int64)
    spec["picture"] = spec["scene"] * N_PICTURES + integers(seed, index, "picture", N_PICTURES)
    spec["zoom"] = column("zoom", np.ones(n))
    spec["bank_seed"] = np.full(n, bank_seed)
    return spec


def _pose(seed: int, index: np.ndarray, spec: dict, column) -> dict[str, np.ndarray]:
    """Place, size and turn of up to four objects: columns of (B, 4), units of the picture side."""
    n, layout, count = len(index), spec["layout"], spec["count"]
    slots = index[:, None] * 4 + np.arange(4)
    u, v, w = (uniform(seed, slots, name) for name in ("x", "y", "turn"))
    size = uniform(seed, index, "scale")
    scale = column("scale", 0.6 + 0.38 * size)
    cx = np.repeat(0.5 + (1 - scale[:, None]) * 0.6 * (u[:, :1] - 0.5), 4, 1)
    cy = np.repeat(0.5 + (1 - scale[:, None]) * 0.6 * (v[:, :1] - 0.5), 4, 1)
    # several of a kind stand on a jittered 2 x 2 grid whose cells are dealt out at random
    several = (layout == COUNT) & (count > 1)
    cell = np.argsort(uniform(seed, slots, "cell"), axis=1, kind="stable")
    cx = np.where(several[:, None], 0.26 + 0.48 * (cell % 2) + 0.06 * (u - 0.5), cx)
    cy = np.where(several[:, None], 0.26 + 0.48 * (cell // 2) + 0.06 * (v - 0.5), cy)
    pair = layout == PAIR
    shift = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])[spec["relation"]]  # (B, 2) direction of the first object
    sign = np.array([1, -1, 0, 0])
    for axis, (centre, jitter) in enumerate(((cx, u), (cy, v))):
        along = (
            0.5
            + 0.24 * shift[:, axis : axis + 1] * sign
            + (0.04 + 0.16 * (shift[:, axis : axis + 1] == 0)) * (jitter - 0.5)
        )
        centre[pair] = along[pair]
    scale = np.where(several, 0.38 + 0.08 * size, np.where(pair, 0.42 + 0.06 * size, scale))
    scale = np.where(layout == TEXTURE, 2.4, scale)
    return {
        "cx": cx,
        "cy": cy,
        "scale": scale,
        "turn": w,
        "mirror": uniform(seed, slots, "mirror") < 0.5,
        "which": np.where(pair[:, None], np.array([0, 1, 0, 0]), 0),
        "seed": np.full(n, seed),
    }
