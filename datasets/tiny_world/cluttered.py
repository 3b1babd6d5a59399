"""The cluttered world: small objects amid plain shapes on a larger canvas, with captions of several sentences.

An image shows at most one object of the 40 kinds, and shapes of no kind around it; a caption has one sentence about
the object and others about the shapes, the light or the weather.
"""

from __future__ import annotations

import numpy as np
import torch

from datasets.tiny_world import world
from datasets.tiny_world.bank import KINDS, N_ENTRIES, N_VARIANTS
from datasets.tiny_world.captions import NAMES, article
from datasets.tiny_world.clutter import SHAPES
from datasets.tiny_world.render import cover, render
from datasets.tiny_world.rng import integers, uniform
from datasets.tiny_world.scenes import N_PICTURES, SCENE_PHRASES, SCENES

SIDE, PATCH = 64, 8  # pixels of the canvas, and of the patches of its CLIP
OPENINGS = ("a picture of", "a photo of", "an image of", "there is", "a drawing of", "this is a photo of")
ABOUT_SHAPES = ("there is also {}.", "{} stands nearby.", "on one side is {}.", "behind it one sees {}.")
REMARKS = (
    "the light is soft this morning.",
    "nobody is around at this hour.",
    "the air is cold and still.",
    "it has just stopped raining here.",
    "the wind blows from the west.",
    "everything is quiet in the evening.",
    "the day is warm and bright.",
    "a few people walked by earlier.",
)


def sample(
    seed: int,
    index: np.ndarray,
    bank_seed: int,
    *,
    kind: np.ndarray,
    shown: np.ndarray,
    scale: np.ndarray,
    shapes: np.ndarray,
) -> dict[str, np.ndarray]:
    """Descriptions for `render(spec, SIDE)`: object `kind` (B,) of size `scale` if `shown`, and 0 to 3 `shapes`.

    With shapes, everything is placed in quadrants, dealt out at random; an object alone is placed anywhere.
    """
    index = np.asarray(index, dtype=np.int64)
    n, slots = len(index), index[:, None] * 4 + np.arange(4)
    u, v = (uniform(seed, slots, name) for name in ("x", "y"))
    own = np.stack([kind, *(N_ENTRIES + integers(seed, slots[:, 1:], "shape", len(SHAPES))).T], 1)  # (B, 4)
    sizes = np.concatenate([scale[:, None], 0.32 + 0.1 * uniform(seed, slots[:, 1:], "shape scale")], 1)
    cell = np.argsort(uniform(seed, slots, "cell"), axis=1, kind="stable")
    alone = (shapes == 0)[:, None]
    cx = np.where(alone, 0.5 + (1 - sizes) * 0.9 * (u - 0.5), 0.26 + 0.48 * (cell % 2) + 0.04 * (u - 0.5))
    cy = np.where(alone, 0.5 + (1 - sizes) * 0.9 * (v - 0.5), 0.26 + 0.48 * (cell // 2) + 0.04 * (v - 0.5))
    scene = integers(seed, index, "scene", len(SCENES))
    return {
        "index": index,
        "seed": np.full(n, seed),
        "bank_seed": np.full(n, bank_seed),
        "shown": shown,
        "shapes": shapes,
        "count": shapes + shown,
        "which": np.where(shown[:, None], np.arange(4), np.arange(1, 5) % 4),  # the object is painted first, if at all
        "kind": own,
        "pattern": integers(seed, slots, "pattern", len(world.PATTERNS)),
        "colour": integers(seed, slots, "colour", len(world.COLOURS)),
        "variant": own * N_VARIANTS + integers(seed, slots, "variant", N_VARIANTS),
        "scale": np.where(shown[:, None], sizes, np.roll(sizes, -1, 1)),
        "cx": cx,
        "cy": cy,
        "turn": uniform(seed, slots, "turn"),
        "mirror": uniform(seed, slots, "mirror") < 0.5,
        "scene": scene,
        "picture": scene * N_PICTURES + integers(seed, index, "picture", N_PICTURES),
        "style": np.zeros(n, dtype=np.int64),
        "zoom": np.ones(n),
    }


def pictures(spec: dict[str, np.ndarray]) -> torch.Tensor:
    """uint8 images (B, 3, SIDE, SIDE)."""
    return render(spec, SIDE)


def object_cells(spec: dict[str, np.ndarray]) -> torch.Tensor:
    """(B, (SIDE / PATCH)**2) True where the object covers at least half of some pixel of the patch, row after row."""
    grid = SIDE // PATCH
    body = cover(spec, 0, SIDE) >= 0.5
    cells = body.view(-1, grid, PATCH, grid, PATCH).any(4).any(2).flatten(1)
    return cells & torch.from_numpy(spec["shown"])[:, None]


def _phrase(spec: dict[str, np.ndarray], i: int, slot: int, noun: str) -> str:
    return article(f"{world.PATTERNS[spec['pattern'][i, slot]]} {world.COLOURS[spec['colour'][i, slot]]} {noun}")


def captions(spec: dict[str, np.ndarray], named: np.ndarray, extra: np.ndarray) -> list[str]:
    """A sentence that names kind `named` (B,), or an object (-1), or shapes alone (-2), and `extra` (B,) others."""
    seed, index = int(spec["seed"][0]), spec["index"]
    opening = integers(seed, index, "opening", len(OPENINGS))
    place = integers(seed, index, "sentence", extra + 1)
    about = integers(seed, index[:, None] * 4 + np.arange(4), "about", len(ABOUT_SHAPES))
    remark = integers(seed, index[:, None] * 4 + np.arange(4), "remark", len(REMARKS))
    told = uniform(seed, index[:, None] * 4 + np.arange(4), "told") < 0.6  # a shape, if one is left; else a remark
    out = []
    for i, kind in enumerate(named):
        body = "some shapes" if kind == -2 else _phrase(spec, i, 0, NAMES[kind] if kind >= 0 else "object")
        left, others = list(range(1, 1 + spec["shapes"][i])), []
        for j in range(extra[i]):
            if told[i, j] and left:
                slot = left.pop(0)
                shape = SHAPES[spec["kind"][i, slot] - N_ENTRIES]
                others.append(ABOUT_SHAPES[about[i, j]].format(_phrase(spec, i, slot, shape)))
            else:
                others.append(REMARKS[remark[i, j]])
        main = f"{OPENINGS[opening[i]]} {body} {SCENE_PHRASES[spec['scene'][i]]}."
        out.append(" ".join([*others[: place[i]], main, *others[place[i] :]]))
    return out


def pre_training(seed: int, index: np.ndarray) -> dict[str, np.ndarray]:
    """What the world's CLIP is trained on: objects of all sizes, alone (30 %) or amid shapes, or none (6 %)."""
    u = uniform(seed, index, "layout")
    shown, alone = u >= 0.06, u >= 0.7
    size = uniform(seed, index, "scale")
    return sample(
        seed,
        index,
        0,
        kind=integers(seed, index, "kind", len(KINDS)),
        shown=shown,
        scale=np.where(alone, 0.42 + 0.5 * size, 0.36 + 0.1 * size),
        shapes=np.where(alone, 0, 1 + integers(seed, index, "shapes", 3)),
    )
