"""The drawings: 40 object kinds and 10 pen-stroke digits as masks, drawn by polygons, discs and thick lines."""

from __future__ import annotations

import math

import numpy as np

N_VARIANTS = 8  # drawings per kind; proportions differ
CELL = 96  # side of a mask in the fine bank; a coarse bank of half the side serves small objects
_SUPER = 2  # supersampling before the masks are reduced to CELL

_AXIS = (np.arange(CELL * _SUPER, dtype=np.float32) + 0.5) / (CELL * _SUPER) * 2.2 - 1.1
X, Y = np.meshgrid(_AXIS, _AXIS)  # object coordinates: x right, y down, the drawing fills about [-0.95, 0.95]


def disc(cx: float, cy: float, r: float) -> np.ndarray:
    return (X - cx) ** 2 + (Y - cy) ** 2 < r * r


def ellipse(cx: float, cy: float, a: float, b: float, angle: float = 0.0) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    u, v = (X - cx) * c + (Y - cy) * s, (Y - cy) * c - (X - cx) * s
    return (u / a) ** 2 + (v / b) ** 2 < 1


def ring(cx: float, cy: float, r: float, width: float) -> np.ndarray:
    return disc(cx, cy, r + width / 2) & ~disc(cx, cy, r - width / 2)


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return (X > x0) & (X < x1) & (Y > y0) & (Y < y1)


def poly(*points: tuple[float, float]) -> np.ndarray:
    """Filled polygon by the even-odd rule."""
    inside = np.zeros(X.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        if y0 != y1:
            inside ^= ((Y < y0) != (Y < y1)) & (X < (x1 - x0) * (Y - y0) / (y1 - y0) + x0)
    return inside


def line(width: float, *points: tuple[float, float]) -> np.ndarray:
    """Thick poly-line with round ends."""
    mask = np.zeros(X.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        dx, dy = x1 - x0, y1 - y0
        t = np.clip(((X - x0) * dx + (Y - y0) * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
        mask |= (X - x0 - t * dx) ** 2 + (Y - y0 - t * dy) ** 2 < (width / 2) ** 2
    return mask


def around(n: int, r: float, phase: float = 0.0, cx: float = 0.0, cy: float = 0.0) -> list[tuple[float, float]]:
    """n points on a circle, the first at the top."""
    angles = [2 * math.pi * i / n + phase - math.pi / 2 for i in range(n)]
    return [(cx + r * math.cos(a), cy + r * math.sin(a)) for a in angles]


# Each drawing takes r, four numbers in [-1, 1], and returns (body, detail); detail is drawn dark upon the body.
def _fish(r):
    body = ellipse(-0.15, 0, 0.68, 0.42 + 0.06 * r[0])
    body |= poly((0.35, 0), (0.95, -0.48 - 0.06 * r[1]), (0.8, 0), (0.95, 0.48 + 0.06 * r[1]))
    body |= poly((-0.3, -0.3), (0.0, -0.72), (0.25, -0.25))
    return body, disc(-0.5, -0.1, 0.09) | line(0.06, (-0.22, -0.25), (-0.15, 0), (-0.22, 0.25))


def _house(r):
    w = 0.62 + 0.08 * r[0]
    body = box(-w, -0.12, w, 0.88) | poly((-w - 0.25, -0.08), (0, -0.85), (w + 0.25, -0.08))
    body |= box(0.32, -0.8, 0.52, -0.3)
    return body, box(-0.02, 0.35, 0.32, 0.88) | box(-0.45, 0.1, -0.18, 0.37) | box(0.1, -0.02, 0.1, -0.02)


def _tree(r):
    s = 0.4 + 0.05 * r[0]
    body = box(-0.13, 0.3, 0.13, 0.95) | disc(-0.4, 0.0, s) | disc(0.4, 0.0, s) | disc(0, -0.45, s + 0.06)
    return body, box(-0.13, 0.42, 0.13, 0.95)


def _key(r):
    x = 0.06 * r[0]
    body = ring(-0.5, 0, 0.33, 0.22) | box(-0.2, -0.11, 0.95, 0.11)
    return body | box(0.45 + x, 0, 0.61 + x, 0.42) | box(0.76, 0, 0.95, 0.36), np.zeros_like(body)


def _cup(r):
    w = 0.06 * r[0]
    handle = ring(0.42, 0.05, 0.33, 0.17)
    body = poly((-0.78 - w, -0.6), (0.48 + w, -0.6), (0.36, 0.75), (-0.66, 0.75)) | handle
    return body, ellipse(-0.15, -0.55, 0.56, 0.13)


def _boat(r):
    top = -0.88 + 0.06 * r[0]
    body = poly((-0.95, 0.3), (0.95, 0.3), (0.58, 0.85), (-0.58, 0.85)) | box(-0.06, top, 0.06, 0.35)
    body |= poly((0.1, top + 0.04), (0.78, 0.18), (0.1, 0.18)) | poly((-0.1, -0.55), (-0.62, 0.18), (-0.1, 0.18))
    return body, box(-0.8, 0.4, 0.8, 0.48) & poly((-0.95, 0.3), (0.95, 0.3), (0.58, 0.85), (-0.58, 0.85))


def _star(r):
    outer, inner = around(5, 0.97), around(5, 0.42 + 0.04 * r[0], math.pi / 5)
    body = poly(*[p for pair in zip(outer, inner, strict=True) for p in pair])
    return body, np.zeros_like(body)


def _heart(r):
    x = 0.4 + 0.03 * r[0]
    body = disc(-x, -0.32, 0.45) | disc(x, -0.32, 0.45) | poly((-0.79, -0.1), (0, -0.5), (0.79, -0.1), (0, 0.9))
    return body, np.zeros_like(body)


def _moon(r):
    body = disc(-0.05, 0, 0.92) & ~disc(0.4 + 0.06 * r[0], -0.12, 0.72)
    return body, np.zeros_like(body)


def _mushroom(r):
    w = 0.24 + 0.05 * r[0]
    body = (ellipse(0, 0.02, 0.93, 0.88) & (Y < 0.08)) | poly((-w, 0), (w, 0), (w + 0.1, 0.92), (-w - 0.1, 0.92))
    return body, disc(-0.42, -0.3, 0.13) | disc(0.08, -0.55, 0.13) | disc(0.48, -0.2, 0.13) | box(-w, 0.08, w, 0.14)


def _flower(r):
    body = line(0.12, (0, -0.2), (0, 0.95)) | ellipse(0.26, 0.66, 0.27, 0.12, -0.6)
    for x, y in around(6, 0.4 + 0.03 * r[0], 0.5, 0, -0.3):
        body |= disc(x, y, 0.26)
    return body, disc(0, -0.3, 0.2)


def _car(r):
    c = 0.06 * r[0]
    body = box(-0.95, -0.08, 0.95, 0.42) | poly((-0.6, -0.05), (-0.36, -0.55), (0.32 + c, -0.55), (0.62 + c, -0.05))
    wheels = disc(-0.52, 0.42, 0.27) | disc(0.52, 0.42, 0.27)
    hubs = disc(-0.52, 0.42, 0.1) | disc(0.52, 0.42, 0.1)
    panes = box(-0.33, -0.43, -0.04, -0.1) | box(0.08, -0.43, 0.33, -0.1)
    return body | wheels, (wheels & ~hubs) | panes


def _umbrella(r):
    dome = ellipse(0, 0.1, 0.95, 0.98 + 0.04 * r[0]) & (Y < 0.1)
    for x in (-0.63, 0.0, 0.63):
        dome &= ~ellipse(x, 0.12, 0.31, 0.16)
    body = dome | box(-0.06, 0, 0.06, 0.75) | (ring(0.18, 0.72, 0.18, 0.12) & (Y > 0.7))
    return body, line(0.05, (0, -0.85), (-0.32, 0.1)) & dome | (line(0.05, (0, -0.85), (0.32, 0.1)) & dome)


def _anchor(r):
    body = ring(0, -0.7, 0.17, 0.13) | box(-0.08, -0.55, 0.08, 0.9) | box(-0.42, -0.42, 0.42, -0.26)
    body |= ring(0, 0.1 + 0.03 * r[0], 0.72, 0.18) & (Y > 0.3)
    body |= poly((-0.95, 0.42), (-0.72, 0.05), (-0.42, 0.45)) | poly((0.95, 0.42), (0.72, 0.05), (0.42, 0.45))
    return body, np.zeros_like(body)


def _bottle(r):
    w = 0.34 + 0.04 * r[0]
    body = box(-w, -0.1, w, 0.95) | box(-0.14, -0.95, 0.14, 0) | (ellipse(0, -0.08, w, 0.3) & (Y < 0))
    return body, box(-w, 0.2, w, 0.3) | box(-w, 0.62, w, 0.72) | box(-0.14, -0.95, 0.14, -0.8)


def _crown(r):
    t = 0.06 * r[0]
    body = poly((-0.8, 0.7), (-0.92, -0.5), (-0.45, 0.0), (0, -0.72 + t), (0.45, 0.0), (0.92, -0.5), (0.8, 0.7))
    body |= disc(-0.9, -0.55, 0.1) | disc(0, -0.76 + t, 0.1) | disc(0.9, -0.55, 0.1)
    return body, box(-0.8, 0.32, 0.8, 0.4) | disc(-0.4, 0.54, 0.08) | disc(0, 0.54, 0.08) | disc(0.4, 0.54, 0.08)


def _arrow(r):
    h, w = 0.62 + 0.06 * r[0], 0.2 + 0.04 * r[1]
    body = poly((-0.95, -w), (0.15, -w), (0.15, -h), (0.95, 0), (0.15, h), (0.15, w), (-0.95, w))
    return body, np.zeros_like(body)


def _cross(r):
    w = 0.27 + 0.05 * r[0]
    body = box(-w, -0.9, w, 0.9) | box(-0.9, -w, 0.9, w)
    return body, np.zeros_like(body)


def _ring(r):
    body = ring(0, 0.3, 0.52, 0.2 + 0.03 * r[0])
    gem = poly((-0.22, -0.92), (0.22, -0.92), (0.4, -0.66), (0, -0.22), (-0.4, -0.66))
    return body | gem, line(0.05, (-0.4, -0.66), (0.4, -0.66)) & gem


def _gear(r):
    body = disc(0, 0, 0.68)
    for x, y in around(8, 0.8, 0.15 * r[0]):
        body |= line(0.3, (0.8 * x, 0.8 * y), (x, y))
    return body & ~disc(0, 0, 0.27), np.zeros_like(body)


def _leaf(r):
    k = 0.05 * r[0]
    body = (disc(-0.55 + k, -0.1, 0.95) & disc(0.55 - k, -0.1, 0.95)) | line(0.1, (0, 0.5), (0, 0.98))
    veins = line(0.06, (0, -0.6), (0, 0.7)) | line(0.05, (0, 0.3), (-0.26, 0.0)) | line(0.05, (0, 0.3), (0.26, 0.0))
    return body, veins | line(0.05, (0, -0.05), (-0.24, -0.33)) | line(0.05, (0, -0.05), (0.24, -0.33))


def _butterfly(r):
    w = 0.04 * r[0]
    body = ellipse(-0.5, -0.35, 0.5 + w, 0.36, 0.6) | ellipse(0.5, -0.35, 0.5 + w, 0.36, -0.6)
    body |= ellipse(-0.42, 0.42, 0.38, 0.3, -0.7) | ellipse(0.42, 0.42, 0.38, 0.3, 0.7)
    torso = ellipse(0, 0.05, 0.09, 0.55) | line(0.06, (0, -0.4), (-0.26, -0.9)) | line(0.06, (0, -0.4), (0.26, -0.9))
    return body | torso, torso


def _cloud(r):
    body = disc(-0.5, 0.15, 0.36) | disc(0.52, 0.18, 0.34) | disc(0.1, -0.2, 0.46 + 0.03 * r[0])
    body |= disc(-0.3, -0.08, 0.36) | box(-0.52, 0.1, 0.54, 0.51)
    return body, np.zeros_like(body)


def _lightning(r):
    x = 0.05 * r[0]
    body = poly((0.1, -0.97), (-0.6, 0.12), (-0.08, 0.12), (-0.3 + x, 0.97), (0.6, -0.22), (0.1, -0.22), (0.52, -0.97))
    return body, np.zeros_like(body)


def _drop(r):
    body = disc(0, 0.32, 0.6) | poly((0, -0.97), (-0.53 - 0.02 * r[0], 0.05), (0, 0.6), (0.53 + 0.02 * r[0], 0.05))
    return body, ring(0, 0.32, 0.4, 0.1) & (X < -0.1) & (Y > 0.3)


def _hourglass(r):
    w = 0.58 + 0.05 * r[0]
    body = poly((-w, -0.75), (w, -0.75), (0.07, 0), (w, 0.75), (-w, 0.75), (-0.07, 0))
    return body | box(-0.75, -0.95, 0.75, -0.72) | box(-0.75, 0.72, 0.75, 0.95), poly((-0.4, 0.7), (0.4, 0.7), (0, 0.3))
