"""The other half of the drawings, the digits, and the bank of finished masks that the renderer samples."""

from __future__ import annotations

import functools

import numpy as np

from datasets.tiny_world import shapes
from datasets.tiny_world.clutter import SHAPE_DRAWINGS
from datasets.tiny_world.rng import uniform
from datasets.tiny_world.shapes import N_VARIANTS, X, Y, around, box, disc, ellipse, line, poly, ring

NONE = np.zeros_like(X, dtype=bool)


def _ladder(r):
    w = 0.42 + 0.06 * r[0]
    body = box(-w - 0.09, -0.95, -w + 0.09, 0.95) | box(w - 0.09, -0.95, w + 0.09, 0.95)
    for y in (-0.62, -0.2, 0.22, 0.64):
        body |= box(-w, y - 0.09, w, y + 0.09)
    return body, NONE


def _bell(r):
    w = 0.5 + 0.04 * r[0]
    body = (ellipse(0, -0.1, w, 0.72) & (Y < 0)) | poly((-w, -0.05), (w, -0.05), (0.88, 0.6), (-0.88, 0.6))
    return body | disc(0, 0.68, 0.2) | disc(0, -0.84, 0.12), disc(0, 0.72, 0.16) & (Y > 0.6)


def _kite(r):
    x = 0.62 + 0.05 * r[0]
    sail = poly((0, -0.97), (x, -0.32), (0, 0.42), (-x, -0.32))
    body = sail | line(0.08, (0, 0.4), (0.16, 0.55), (-0.1, 0.7), (0.14, 0.95))
    bows = poly((-0.15, 0.5), (0.45, 0.68), (0.45, 0.45), (-0.15, 0.72)) | poly(
        (-0.4, 0.7), (0.3, 0.95), (0.3, 0.7), (-0.4, 0.95)
    )
    return body | bows, (line(0.06, (0, -0.97), (0, 0.42)) | line(0.06, (-x, -0.32), (x, -0.32))) & sail


def _hammer(r):
    w = 0.62 + 0.06 * r[0]
    body = box(-0.11, -0.4, 0.11, 0.97) | box(-w, -0.85, w * 0.8, -0.35) | box(-w - 0.14, -0.92, -w, -0.28)
    return body, box(-0.11, 0.55, 0.11, 0.6) | box(-0.11, 0.75, 0.11, 0.8)


def _sun(r):
    body = disc(0, 0, 0.46 + 0.03 * r[0])
    for (x0, y0), (x1, y1) in zip(around(8, 0.64), around(8, 0.95), strict=True):
        body |= line(0.14, (x0, y0), (x1, y1))
    return body, disc(-0.16, -0.1, 0.07) | disc(0.16, -0.1, 0.07) | (ring(0, 0, 0.24, 0.07) & (Y > 0.08))


def _fork(r):
    body = box(-0.1, 0, 0.1, 0.97) | box(-0.4, -0.3, 0.4, -0.08) | (ellipse(0, -0.1, 0.4, 0.3) & (Y > -0.12))
    for x in (-0.32, 0.0, 0.32):
        body |= box(x - 0.085, -0.95 + 0.04 * r[0], x + 0.085, -0.1)
    return body, NONE


def _apple(r):
    x = 0.3 + 0.03 * r[0]
    body = ellipse(-x, 0.22, 0.52, 0.66) | ellipse(x, 0.22, 0.52, 0.66)
    body |= ellipse(0.3, -0.72, 0.3, 0.14, -0.5) | line(0.12, (0, -0.3), (0.02, -0.9))
    return body, line(0.1, (0, -0.3), (0.02, -0.9)) | ellipse(0.3, -0.72, 0.3, 0.05, -0.5)


def _balloon(r):
    body = ellipse(0, -0.32, 0.56 + 0.04 * r[0], 0.64) | poly((0, 0.25), (0.14, 0.45), (-0.14, 0.45))
    return body | line(0.07, (0, 0.4), (0.15, 0.6), (-0.08, 0.8), (0.05, 0.97)), ellipse(-0.22, -0.55, 0.09, 0.2, 0.4)


def _candle(r):
    w = 0.26 + 0.04 * r[0]
    flame = ellipse(0, -0.66, 0.14, 0.22) | poly((-0.09, -0.75), (0, -0.98), (0.09, -0.75))
    body = box(-w, -0.3, w, 0.75) | flame | line(0.06, (0, -0.5), (0, -0.25)) | ellipse(0, 0.78, 0.68, 0.17)
    return body | ring(0.66, 0.72, 0.16, 0.09), ellipse(0, -0.62, 0.05, 0.09) | line(0.07, (-0.1, -0.3), (-0.1, 0.05))


def _rocket(r):
    w = 0.3 + 0.03 * r[0]
    hull = ellipse(0, -0.1, w, 0.88) & (Y < 0.55)
    fins = poly((-w + 0.08, 0.05), (-0.68, 0.62), (-0.15, 0.5)) | poly((w - 0.08, 0.05), (0.68, 0.62), (0.15, 0.5))
    flame = poly((-0.15, 0.55), (0.15, 0.55), (0, 0.98))
    return hull | fins | flame, disc(0, -0.3, 0.13) | (hull & (Y > 0.43))


def _flag(r):
    y = 0.06 * r[0]
    cloth = poly(
        (-0.6, -0.92),
        (-0.1, -0.8 + y),
        (0.4, -0.95),
        (0.92, -0.82),
        (0.92, 0.02),
        (0.4, -0.1),
        (-0.1, 0.05 + y),
        (-0.6, -0.07),
    )
    pole = box(-0.74, -0.97, -0.58, 0.97)
    return cloth | pole, pole


def _chair(r):
    h = 0.06 * r[0]
    body = box(-0.62, -0.95 + h, -0.4, 0.95) | box(-0.62, -0.05, 0.58, 0.2) | box(0.38, 0.1, 0.58, 0.95)
    return body | box(-0.62, -0.95 + h, -0.28, -0.3), NONE


def _hat(r):
    w = 0.5 + 0.05 * r[0]
    body = ellipse(0, 0.55, 0.95, 0.24) | poly((-w, -0.78), (w, -0.78), (w - 0.06, 0.55), (-w + 0.06, 0.55))
    return body, box(-w, 0.18, w, 0.4) & poly((-w, -0.78), (w, -0.78), (w - 0.06, 0.55), (-w + 0.06, 0.55))


def _snowman(r):
    s = 0.03 * r[0]
    hat = box(-0.42, -0.62, 0.42, -0.52) | box(-0.26, -0.97, 0.26, -0.55)
    body = disc(0, 0.48, 0.48 + s) | disc(0, -0.3, 0.34) | hat
    arms = line(0.07, (-0.4, 0.2), (-0.9, -0.15)) | line(0.07, (0.4, 0.2), (0.9, -0.15))
    eyes = disc(-0.13, -0.36, 0.06) | disc(0.13, -0.36, 0.06) | poly((0, -0.28), (0.3, -0.2), (0, -0.15))
    return body | arms, hat | eyes | disc(0, 0.25, 0.07) | disc(0, 0.5, 0.07) | disc(0, 0.72, 0.07)


def _kind_functions() -> dict:
    """Kind name -> drawing; the order is the label order and must not change."""
    s = shapes
    names = "fish house tree key cup boat star heart moon mushroom flower car umbrella anchor bottle crown arrow"
    names += " cross ring gear leaf butterfly cloud lightning drop hourglass"
    table = {name: getattr(s, f"_{name}") for name in names.split()}
    table |= {"ladder": _ladder, "bell": _bell, "kite": _kite, "hammer": _hammer, "sun": _sun, "fork": _fork}
    table |= {"apple": _apple, "balloon": _balloon, "candle": _candle, "rocket": _rocket, "flag": _flag}
    return table | {"chair": _chair, "hat": _hat, "snowman": _snowman}


KINDS = tuple(_kind_functions())
FULL = len(KINDS)  # bank entry that covers everything: a texture instead of an object
FIRST_DIGIT = FULL + 1
N_ENTRIES = FIRST_DIGIT + 10

_ARC = {  # digits as pen strokes in [-1, 1]
    0: [around(12, 0.75) + around(12, 0.75)[:1]],
    1: [[(-0.35, -0.5), (0.1, -0.85), (0.1, 0.85)]],
    2: [[(-0.5, -0.5), (-0.25, -0.82), (0.25, -0.82), (0.5, -0.45), (0.3, -0.05), (-0.55, 0.8), (0.6, 0.8)]],
    3: [[(-0.5, -0.75), (0.2, -0.85), (0.5, -0.5), (0.0, -0.05), (0.55, 0.35), (0.25, 0.82), (-0.5, 0.75)]],
    4: [[(0.3, 0.9), (0.3, -0.85), (-0.6, 0.35), (0.65, 0.35)]],
    5: [[(0.5, -0.82), (-0.4, -0.82), (-0.45, -0.1), (0.2, -0.15), (0.55, 0.3), (0.2, 0.8), (-0.5, 0.75)]],
    6: [[(0.4, -0.8), (-0.2, -0.4), (-0.5, 0.3), (-0.1, 0.82), (0.4, 0.65), (0.45, 0.2), (0.0, 0.0), (-0.48, 0.25)]],
    7: [[(-0.55, -0.8), (0.55, -0.8), (-0.1, 0.85)]],
    8: [[*around(10, r, 0.0, 0, y), (0, y - r)] for r, y in ((0.4, -0.43), (0.45, 0.42))],
    9: [[(0.45, -0.3), (0.0, -0.05), (-0.42, -0.3), (-0.3, -0.75), (0.2, -0.82), (0.45, -0.4), (0.3, 0.4),
         (0.0, 0.85)]],
}  # fmt: skip


def _digit(digit: int, r: np.ndarray) -> np.ndarray:
    width, slant, squeeze = 0.2 + 0.06 * r[0], 0.2 * r[1], 0.85 + 0.15 * r[2]
    mask = NONE.copy()
    for stroke in _ARC[digit]:
        mask |= line(width, *[(squeeze * x - slant * y, y + 0.05 * r[3] * x) for x, y in stroke])
    return mask


def _grow(mask: np.ndarray, radius: int, grown: int = 0) -> np.ndarray:
    """Dilate a boolean mask that was dilated by `grown` pixels to `radius` pixels, by an octagon (erode by dilating the
    complement)."""
    for step in range(grown, radius):
        square = step % 2  # cross and square by turns make the octagon
        out = mask.copy()
        out[1:] |= mask[:-1]
        out[:-1] |= mask[1:]
        wide = out.copy() if square else mask
        out[:, 1:] |= wide[:, :-1]
        out[:, :-1] |= wide[:, 1:]
        mask = out
    return mask


def _soft(masks: np.ndarray, factor: int) -> np.ndarray:
    """Box-reduce masks (M, S, S) to S / factor and soften by a [1 2 1] kernel: values 0..127, rounded half up."""
    n = masks.shape[1] // factor
    lines = masks.view(np.uint8).reshape(len(masks), n, factor, -1).sum(2, dtype=np.uint8)
    soft = sum(lines[:, :, i::factor].astype(np.int32) for i in range(factor))
    for axis in (1, 2):
        soft = np.roll(soft, 1, axis) + 2 * soft + np.roll(soft, -1, axis)
    whole = 16 * factor**2  # what a pixel holds that is covered, neighbors included
    return (2 * 127 * soft + whole) // (2 * whole)


def _packed(body: np.ndarray, detail: np.ndarray) -> np.ndarray:
    """Body, detail, rim and core at both resolutions, seven bits each in one int32, flattened: fine, then coarse."""
    rows, rim, hollow, radii = [], body, ~body, (0, 0)
    for factor in (2, 4):
        wanted = 2 * factor, 3 * factor  # about one picture pixel, and one and a half
        rim, hollow = (_grow(m, r, old) for m, r, old in zip((rim, hollow), wanted, radii, strict=True))
        channels = _soft(np.stack([body, detail & body, rim, ~hollow]), factor)
        rows.append((channels[0] | channels[1] << 7 | channels[2] << 14 | channels[3] << 21).ravel())
        radii = wanted
    return np.concatenate(rows)


@functools.lru_cache(maxsize=4)
def mask_bank(seed: int) -> np.ndarray:
    """All masks drawn from `seed`: int32 of ((N_ENTRIES + shapes) * N_VARIANTS, CELL**2 + (CELL/2)**2), fine then
    coarse."""
    rows = []
    functions, plain = list(_kind_functions().values()), list(SHAPE_DRAWINGS.values())
    for entry in range(N_ENTRIES + len(plain)):
        for variant in range(N_VARIANTS):
            r = uniform(seed, np.arange(4) + 4 * (variant + N_VARIANTS * entry), "drawing") * 2 - 1
            if entry >= N_ENTRIES:
                body, detail = plain[entry - N_ENTRIES](r), NONE
            elif entry < FULL:
                body, detail = functions[entry](r)
            elif entry == FULL:
                body, detail = ~NONE, NONE
            else:
                body, detail = _digit(entry - FIRST_DIGIT, r), NONE
            rows.append(_packed(body, detail))
    return np.stack(rows)
