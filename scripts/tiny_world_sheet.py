"""Contact sheets of the picture world, each image under the name that the code gives it; see scripts/tiny_world.py."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import torch

from datasets.tiny_world import captions as words
from datasets.tiny_world import streams, world
from datasets.tiny_world.render import render
from datasets.tiny_world.scenes import SCENES


def sheet(path: Path, images: torch.Tensor, labels: list[str], columns: int, width: int = 20) -> None:
    """Images (B, 3, H, W) in rows, doubled in size, labels below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-len(images) // columns)
    lines = max(len(textwrap.wrap(label, width)) for label in labels)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * 1.15, rows * (1.05 + 0.16 * lines)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, label in zip(axes.flat, images, labels, strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.text(0.5, -0.04, textwrap.fill(label, width), fontsize=6, ha="center", va="top", transform=axis.transAxes)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.06, wspace=0.06, hspace=0.1 + 0.18 * lines)
    figure.savefig(path, dpi=85)
    plt.close(figure)
    print(f"wrote {path}")


def world_sheets(out: Path) -> None:
    n = len(words.NAMES)
    spec = world.sample(5, np.arange(n), layout=world.SINGLE, kind=np.arange(n), style=0)
    sheet(out / "kinds.png", render(spec), list(words.NAMES), 10)

    fixed = dict(layout=world.SINGLE, kind=0, colour=1)
    pictures, labels = [], []
    for name, values in (
        ("pattern", world.PATTERNS),
        ("colour", world.COLOURS),
        ("scene", SCENES),
        ("style", world.STYLES),
    ):
        row = {"pattern": 1, "scene": 0, "style": 0, **fixed, name: np.arange(len(values))}
        pictures.append(render(world.sample(6, np.arange(len(values)), **row)))
        labels += values
    sheet(out / "attributes.png", torch.cat(pictures), labels, 11)

    spec = world.sample(1, np.arange(60))
    sheet(out / "pretraining.png", render(spec), words.captions(spec), 10)


def stream_sheets(out: Path) -> None:
    data = streams.seq_tiny(False)
    sheet(out / "seq_tiny.png", data["images"][:60], [data["names"][c] for c in data["labels"][:60]], 10)

    pictures, labels = [], []
    for domain in streams.MTIL_DOMAINS:
        data = streams.mtil_tiny(domain, False)
        pictures.append(data["images"][:10])
        labels += [f"{domain}: {data['names'][c]}" for c in data["labels"][:10]]
    sheet(out / "mtil_tiny.png", torch.cat(pictures), labels, 10)

    pictures, labels = [], []
    for task in range(6):
        data = streams.clove_tiny_function(task, False)
        pictures.append(data["images"][:8])
        labels += [f"{q} {a}" for q, a in zip(data["questions"][:8], data["answer"][:8], strict=True)]
    sheet(out / "clove_tiny.png", torch.cat(pictures), labels, 8, 24)

    data = streams.mm_tiny(False)
    texts = [f"[{int(c)}] {t}" for c, t in zip(data["labels"], data["captions"], strict=True)]
    sheet(out / "mm_tiny.png", data["images"][:18], texts[:18], 6, 26)
