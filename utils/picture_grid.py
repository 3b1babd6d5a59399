"""A sheet of sample images with a few lines of text under each, as PNG."""

import os
import textwrap
from collections.abc import Sequence

import numpy as np
import torch

from utils.escape import clean, on_figure

INCHES, LINE_INCHES, LETTERS = 1.5, 0.13, 26  # side of an image, height of a line of text, characters per line


def plot_pictures(
    images: Sequence, texts: Sequence[list[str]], columns: int, path: str | os.PathLike, title: str
) -> None:
    """Images (uint8 tensors (C, H, W), or PIL) in rows of `columns`; each has its lines below, wrapped."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and needed only here
    from matplotlib.figure import Figure

    wrapped = ["\n".join("\n".join(textwrap.wrap(clean(line), LETTERS)) for line in lines) for lines in texts]
    rows = -(-len(images) // columns)
    lines = max(text.count("\n") + 1 for text in wrapped)
    figure = Figure(figsize=(INCHES * columns + 0.3, (INCHES + LINE_INCHES * lines) * rows + 0.4), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False).flat
    for cell in cells:
        cell.set_axis_off()
    for cell, image, text in zip(figure.axes, images, wrapped, strict=False):
        pixels = image.permute(1, 2, 0).numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
        cell.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray")
        cell.text(0.5, -0.03, on_figure(text), transform=cell.transAxes, ha="center", va="top", fontsize=6)
    figure.suptitle(on_figure(title), fontsize=8)
    FigureCanvasAgg(figure)
    figure.savefig(os.fspath(path), format="png", bbox_inches="tight")  # tight: no line of the last row is cut off
