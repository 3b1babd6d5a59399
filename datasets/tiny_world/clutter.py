"""Plain geometric shapes, the clutter of the cluttered world: in no class, and in no image of the other streams."""

from __future__ import annotations

from datasets.tiny_world.shapes import X, Y, around, box, disc, ellipse, line, poly

# each takes r, four numbers in [-1, 1], and returns the body
SHAPE_DRAWINGS = {
    "circle": lambda r: disc(0, 0, 0.82 + 0.06 * r[0]),
    "oval": lambda r: ellipse(0, 0, 0.9, 0.5 + 0.06 * r[0]),
    "triangle": lambda r: poly(*around(3, 0.95, 0.1 * r[0])),
    "square": lambda r: box(-0.72, -0.72, 0.72 + 0.08 * r[0], 0.72),
    "diamond": lambda r: poly((0, -0.95), (0.6 + 0.08 * r[0], 0), (0, 0.95), (-0.6 - 0.08 * r[0], 0)),
    "pentagon": lambda r: poly(*around(5, 0.92, 0.2 * r[0])),
    "hexagon": lambda r: poly(*around(6, 0.92, 0.2 * r[0])),
    "semicircle": lambda r: disc(0, 0.4, 0.9 + 0.05 * r[0]) & (Y < 0.4),
    "bar": lambda r: box(-0.95, -0.24 - 0.06 * r[0], 0.95, 0.24 + 0.06 * r[0]),
    "chevron": lambda r: line(0.36 + 0.06 * r[0], (-0.72, 0.5), (0, -0.5), (0.72, 0.5)),
    "arch": lambda r: (disc(0, 0.35, 0.9) & ~disc(0, 0.35, 0.5 + 0.06 * r[0])) & (Y < 0.75) & (abs(X) < 0.9),
    "trapezoid": lambda r: poly((-0.45 + 0.1 * r[0], -0.6), (0.45, -0.6), (0.9, 0.6), (-0.9, 0.6)),
}
SHAPES = tuple(SHAPE_DRAWINGS)
