"""Pictures from scene descriptions, in batches.

Pixels are made of table look-ups and single additions, multiplications, comparisons and floors in float32: no
transcendental function, matrix product or reduction whose result depends on the machine, so bytes are the same
on every torch and thread count.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from datasets.tiny_world.bank import FIRST_DIGIT, FULL, N_ENTRIES, mask_bank
from datasets.tiny_world.rng import uniform
from datasets.tiny_world.scenes import SIZE, scene_bank
from datasets.tiny_world.shapes import CELL
from datasets.tiny_world.world import COLOURS, STYLES

_RGB = {
    "red": (0.86, 0.1, 0.1), "orange": (0.99, 0.55, 0.05), "yellow": (0.98, 0.9, 0.15), "green": (0.12, 0.6, 0.2),
    "blue": (0.12, 0.28, 0.88), "purple": (0.52, 0.16, 0.66), "pink": (0.99, 0.55, 0.74), "brown": (0.46, 0.27, 0.12),
    "black": (0.09, 0.09, 0.1), "white": (0.97, 0.97, 0.97),
}  # fmt: skip
_CHUNK = 64  # pictures drawn at once: the working set stays in the cache
_NOISE = 1 << 18


@functools.lru_cache(maxsize=1)
def _noise() -> torch.Tensor:
    """A table of noise of unit deviation (sum of three uniforms), read from a random offset per picture."""
    u = sum(uniform(0, np.arange(_NOISE), f"noise {i}") for i in range(3))
    return torch.from_numpy(((u - 1.5) * 2).astype(np.float32))


@functools.lru_cache(maxsize=4)
def _bank(kind: str, seed: int) -> torch.Tensor:
    table = mask_bank(seed) if kind == "mask" else scene_bank(seed).reshape(-1, 3, SIZE * SIZE)
    return torch.from_numpy(table)


def _is_digit(kind: np.ndarray) -> np.ndarray:
    return (kind >= FIRST_DIGIT) & (kind < N_ENTRIES)


def render(spec: dict[str, np.ndarray], size: int = 48, strength: float = 0.5) -> torch.Tensor:
    """uint8 pictures (B, 3, size, size); `strength` in [0, 1] is that of the never-trained styles."""
    n = len(spec["index"])
    out = torch.empty(n, 3, size, size, dtype=torch.uint8)
    for start in range(0, n, _CHUNK):
        part = {k: v[start : start + _CHUNK] for k, v in spec.items()}
        img = _background(part, size)
        for slot in range(4):
            rows = np.flatnonzero(part["count"] > slot)
            if len(rows):
                _paint(img, part, rows, slot, size)
        img = _styled(img, part, strength)
        img = img + 0.025 * _grain(part, "grain", size)
        out[start : start + _CHUNK] = (img.clamp(0, 1) * 255 + 0.5).floor().to(torch.uint8)
    return out


def _unit(spec: dict, field: str) -> np.ndarray:
    return uniform(int(spec["seed"][0]), spec["index"], field)


def _grain(spec: dict, field: str, size: int) -> torch.Tensor:
    length = 3 * size * size
    start = torch.from_numpy((_unit(spec, field) * (_NOISE - length)).astype(np.int64))
    return _noise()[start[:, None] + torch.arange(length)].view(-1, 3, size, size)


def _background(spec: dict, size: int) -> torch.Tensor:
    """A window of a bank picture at a random place, mirrored at random, with a random light."""
    room = SIZE - size
    x = torch.from_numpy(np.floor(_unit(spec, "window x") * (room + 1)).astype(np.int64))
    y = torch.from_numpy(np.floor(_unit(spec, "window y") * (room + 1)).astype(np.int64))
    flip = torch.from_numpy(_unit(spec, "window flip") < 0.5)[:, None]
    step = torch.arange(size)
    cols = torch.where(flip, x[:, None] + size - 1 - step, x[:, None] + step)
    pixels = ((y[:, None] + step)[:, :, None] * SIZE + cols[:, None, :]).view(len(x), 1, -1)
    bank = _bank("scene", 0)[torch.from_numpy(spec["picture"])]  # (B, 3, SIZE**2)
    img = torch.gather(bank, 2, pixels.expand(-1, 3, -1)).view(-1, 3, size, size).float() / 255
    light = torch.from_numpy((0.88 + 0.24 * _unit(spec, "light")).astype(np.float32))
    return img * light[:, None, None, None]


def _column(spec: dict, name: str, rows: np.ndarray, slot: int) -> np.ndarray:
    return spec[name][rows, slot] if spec[name].ndim == 2 else spec[name][rows]


def _placed(spec: dict, rows: np.ndarray, slot: int, size: int) -> tuple:
    """The slot-th object of the given pictures: its masks, its coordinates in picture pixels, and half its side."""
    which = spec["which"][rows, slot]
    kind, variant = spec["kind"][rows, which], spec["variant"][rows, which]
    scale = torch.from_numpy(_column(spec, "scale", rows, slot).astype(np.float32))[:, None, None]
    cx, cy = (torch.from_numpy((spec[k][rows, slot] * size).astype(np.float32))[:, None, None] for k in ("cx", "cy"))
    angle = (spec["turn"][rows, slot] - 0.5) * np.where(_is_digit(kind), 0.2, 0.7)  # radians
    cos, sin = (torch.from_numpy(f(angle).astype(np.float32))[:, None, None] for f in (np.cos, np.sin))
    mirrored = spec["mirror"][rows, slot] & (kind < FULL)  # a mirrored digit is another sign
    axis = torch.arange(size, dtype=torch.float32) + 0.5
    dx, dy = axis[None, None, :] - cx, axis[None, :, None] - cy
    px, py = dx * cos + dy * sin, dy * cos - dx * sin  # picture pixels in the object's own frame (b, size, size)
    flip = torch.from_numpy(np.where(mirrored, -1, 1).astype(np.float32))[:, None, None]
    half = scale * (size / 2)
    return _masks(int(spec["bank_seed"][0]), variant, px * flip / half, py / half, scale), px, py, half


def cover(spec: dict[str, np.ndarray], slot: int, size: int) -> torch.Tensor:
    """(B, size, size) in [0, 1]: how much of each pixel the slot-th object covers; 0 where there is none."""
    out = torch.zeros(len(spec["index"]), size, size)
    rows = np.flatnonzero(spec["count"] > slot)
    out[rows] = _placed(spec, rows, slot, size)[0][0]
    return out


def _paint(img: torch.Tensor, spec: dict, rows: np.ndarray, slot: int, size: int) -> None:
    """Paint the slot-th object of the given pictures upon them."""
    which = spec["which"][rows, slot]
    kind, pattern, colour = (spec[k][rows, which] for k in ("kind", "pattern", "colour"))
    (body, detail, rim, core), px, py, half = _placed(spec, rows, slot, size)
    zoom = torch.from_numpy(spec["zoom"][rows].astype(np.float32))[:, None, None]
    tone = _tone(pattern, px, py, half, core, zoom)
    base, second, edge = (_colours(spec, rows, which, colour, kind)[i][:, :, None, None] for i in range(3))
    fill = base + (second - base) * tone[:, None]
    old = img[rows]
    old = old + (edge - old) * (rim * 0.85)[:, None]
    old = old + (fill - old) * body[:, None]
    img[rows] = old + (edge - old) * (detail * 0.9)[:, None]


def _masks(seed: int, variant: np.ndarray, u: torch.Tensor, v: torch.Tensor, scale: torch.Tensor) -> list[torch.Tensor]:
    """Body, detail, rim and core in [0, 1], read at object coordinates in [-1, 1] from the fine or the coarse bank."""
    coarse = scale < 0.55
    side = torch.where(coarse, CELL // 2, CELL)
    # the bank shows [-1.1, 1.1] with a margin for the rim
    col = ((u / 2.2 + 0.5) * side).floor()
    row = ((v / 2.2 + 0.5) * side).floor()
    full = torch.from_numpy(variant // 8 == FULL)[:, None, None]
    inside = (col >= 0) & (col < side) & (row >= 0) & (row < side) | full
    last = (side - 1).float()
    cell = row.clamp(min=0).minimum(last) * side + col.clamp(min=0).minimum(last)
    start = torch.from_numpy(variant * (CELL * CELL + (CELL // 2) ** 2))[:, None, None] + coarse * (CELL * CELL)
    packed = _bank("mask", seed).view(-1)[start + cell.long()] * inside
    return [((packed >> shift) & 127).float() / 127 for shift in (0, 7, 14, 21)]


def _frac(x: torch.Tensor) -> torch.Tensor:
    return x - x.floor()


def _tone(
    pattern: np.ndarray, px: torch.Tensor, py: torch.Tensor, half: torch.Tensor, core: torch.Tensor, zoom: torch.Tensor
) -> torch.Tensor:
    """Share of the second colour, (b, size, size); px and py are picture pixels from the object's middle."""
    tone = torch.zeros_like(px)
    period = (4.5 + 3.5 * (half / 24).clamp(max=1)) * zoom  # picture pixels
    for p in np.unique(pattern):
        rows = torch.from_numpy(np.flatnonzero(pattern == p))
        x, y, h = px[rows] / period[rows] + 64, py[rows] / period[rows] + 64, half[rows]
        tone[rows] = _PATTERNS[p](x, y, py[rows] / h, core[rows]).float()
    return tone


def _triangle(x: torch.Tensor) -> torch.Tensor:
    """Zigzag between 0 and 1 of period 1."""
    return (2 * _frac(x) - 1).abs()


def _dots(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    u, v = _frac(x) - 0.5, _frac(y) - 0.5
    return u * u + v * v < 0.1


_PATTERNS = {  # of coordinates in periods, the height in [-1, 1] and the core mask
    0: lambda x, y, h, core: torch.zeros_like(x),
    1: lambda x, y, h, core: _frac(y * 1.05) < 0.5,
    2: lambda x, y, h, core: _dots(x, y),
    3: lambda x, y, h, core: ((x * 1.5).floor() + (y * 1.5).floor()) % 2 == 0,
    4: lambda x, y, h, core: (h * 0.6 + 0.5).clamp(0, 1),
    5: lambda x, y, h, core: core,
    6: lambda x, y, h, core: _frac(y + 0.9 * _triangle(x * 0.7)) < 0.5,
    7: lambda x, y, h, core: _frac(y * 0.8 + 2.2 * _triangle(x * 0.3) * (1 - _triangle(x * 0.3))) < 0.45,
    8: lambda x, y, h, core: _frac(((x - 64) ** 2 + (y - 64) ** 2) * 0.25) < 0.5,
    9: lambda x, y, h, core: torch.where((x.floor() + y.floor()) % 2 == 0, _frac(x * 3) < 0.5, _frac(y * 3) < 0.5),
    10: lambda x, y, h, core: _frac(x.mul(7).floor() * 0.3819 + y.mul(7).floor() * 0.7236) < 0.25,
    11: lambda x, y, h, core: (_frac(x + y) < 0.25) | (_frac(x - y) < 0.25),
}


def _colours(
    spec: dict, rows: np.ndarray, which: np.ndarray, colour: np.ndarray, kind: np.ndarray
) -> list[torch.Tensor]:
    """Base, second tone and edge colour of each object, (b, 3) each, with a little jitter."""
    table = np.array([_RGB[c] for c in COLOURS])
    jitter = [_unit(spec, f"tint {i}")[rows] for i in range(3)]
    base = np.clip(table[colour] + 0.1 * (np.stack(jitter, 1) - 0.5), 0, 1)
    base[_is_digit(kind)] = 0.08
    light = base[:, :1] * 0.3 + base[:, 1:2] * 0.59 + base[:, 2:] * 0.11
    second = np.where(light > 0.5, base * 0.42, base + 0.68 * (1 - base))
    edge = np.where(light > 0.16, 0.07, 0.78) + np.zeros((1, 3))
    return [torch.from_numpy(c.astype(np.float32)) for c in (base, second, edge)]


def _styled(img: torch.Tensor, spec: dict, strength: float) -> torch.Tensor:
    for number in np.unique(spec["style"]):
        if STYLES[number] == "flat":
            continue
        mask = spec["style"] == number
        rows = torch.from_numpy(np.flatnonzero(mask))
        part = {k: v[mask] for k, v in spec.items()}
        img[rows] = _STYLES[STYLES[number]](img[rows], part, strength)
    return img


def _pooled(img: torch.Tensor, k: int) -> torch.Tensor:
    """Mean over k x k blocks, at full size again; summed in a fixed order."""
    total = sum(img[..., i::k, j::k] for i in range(k) for j in range(k)) / (k * k)
    return total.repeat_interleave(k, -1).repeat_interleave(k, -2)


def _sketch(img: torch.Tensor, spec: dict, strength: float) -> torch.Tensor:
    """Coloured pencil: pale fill and dark edges."""
    grey = img[:, :1] * 0.3 + img[:, 1:2] * 0.59 + img[:, 2:] * 0.11
    edge = torch.zeros_like(grey)
    edge[..., :-1] = (grey[..., 1:] - grey[..., :-1]).abs()
    edge[..., :-1, :] += (grey[..., 1:, :] - grey[..., :-1, :]).abs()
    return 0.6 + 0.4 * img - 1.6 * edge


def _blurred(img: torch.Tensor, spec: dict, strength: float) -> torch.Tensor:
    for axis in (-1, -2):
        before, after = img.roll(1, axis), img.roll(-1, axis)
        img = img + (0.5 * (before + after) - img) * (0.4 + 0.6 * strength)
    return img


def _warped(img: torch.Tensor, spec: dict, strength: float) -> torch.Tensor:
    """Rows and columns pushed along a wave of random phase, up to 8 * strength pixels."""
    size = img.shape[-1]
    step = torch.arange(size, dtype=torch.float32)
    for axis in (-1, -2):
        phase = torch.from_numpy(_unit(spec, f"warp {axis}").astype(np.float32))[:, None]
        push = ((_triangle(step / 22 + phase) - 0.5) * 8 * strength).floor().long()  # (b, size)
        source = (push[:, :, None] + torch.arange(size)).clamp(0, size - 1)
        index = (source if axis == -1 else source.transpose(1, 2))[:, None].expand_as(img)
        img = img.gather(axis, index)
    return img


def _stitched(img: torch.Tensor, spec: dict, strength: float) -> torch.Tensor:
    """Embroidery: 4-pixel stitches, each of nearly one colour, with the cloth showing between the threads."""
    i = torch.arange(img.shape[-1])
    thread = ((i[:, None] % 4 == i % 4) | (i[:, None] % 4 == 3 - i % 4)).float()
    img = img + (_pooled(img, 4) - img) * (0.8 * strength)
    return img * (1 - strength * 0.7 * (1 - thread)) + 0.25 * strength * thread


_STYLES = {
    "mosaic": lambda img, spec, s: _pooled(img, 3),
    "sketch": _sketch,
    "pale": lambda img, spec, s: 0.55 + 0.45 * img,
    "dark": lambda img, spec, s: 0.42 * img,
    "noisy": lambda img, spec, s: img + 0.3 * s * _grain(spec, "noisy", img.shape[-1]),
    "blurred": _blurred,
    "warped": _warped,
    "stitched": _stitched,
}
