"""What the CLIP of the cluttered world is taught: images, captions, auxiliary targets, vocabulary and checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import interpolate

from backbone.tiny_tokenizer import TinyTokenizer, build_pieces
from datasets.tiny_world import captions as words
from datasets.tiny_world import cluttered, world
from datasets.tiny_world.clutter import SHAPES
from datasets.tiny_world.render import render
from datasets.tiny_world.rng import integers, uniform

SIDE, CONTEXT = cluttered.SIDE, 56
HEADS = {  # targets read off the class token: classes and weight
    "kind": (len(words.NAMES), 1.0),
    "pattern": (len(world.PATTERNS), 0.4),
    "colour": (len(world.COLOURS), 0.4),
    "scene": (8, 0.1),
}
TEXT_HEADS = {"named": (len(words.NAMES) + 2, 0.3)}  # read off the text's feature: the kind, an object, shapes alone
SHORT = 0.7  # of the steps read the sentence about the object alone, the others all sentences


def lesson(seed: int, index: np.ndarray, step: int) -> tuple[torch.Tensor, list[str], dict[str, torch.Tensor]]:
    """Images, captions and targets (-1: none). A caption is true, but one in six says object instead of its name."""
    spec = cluttered.pre_training(seed, index)
    kind, shown = spec["kind"][:, 0], spec["shown"]
    named = np.where(shown, np.where(uniform(seed, index, "named") < 1 / 6, -1, kind), -2)
    short = uniform(seed, np.array([step]), "short")[0] < SHORT
    extra = np.zeros(len(index), dtype=np.int64) if short else 2 + integers(seed, index, "extra", 2)
    columns = {
        "kind": np.where(shown, kind, -1),
        "pattern": np.where(shown, spec["pattern"][:, 0], -1),
        "colour": np.where(shown, spec["colour"][:, 0], -1),
        "scene": spec["scene"],
        "named": named % TEXT_HEADS["named"][0],
    }
    labels = {name: torch.from_numpy(column.astype(np.int64)) for name, column in columns.items()}
    return cluttered.pictures(spec), cluttered.captions(spec, named, extra), labels


def checks(seed: int, n: int) -> dict[str, tuple[torch.Tensor, tuple[str, ...], np.ndarray]]:
    """Images, names and answers: the kind of an object amid shapes, and of one alone, from drawings not trained on."""
    index = np.arange(n)
    kind, out = index % len(words.NAMES), {}
    for label, shapes, low in (("amid", 3, 0.36), ("alone", 0, 0.5)):
        scale = low + 0.1 * uniform(seed, index, "scale")
        shown, number = np.ones(n, dtype=bool), np.full(n, shapes)
        spec = cluttered.sample(seed, index, seed, kind=kind, shown=shown, scale=scale, shapes=number)
        out[label] = render(spec, SIDE), words.NAMES, kind
    return out


def vocabulary(seed: int) -> list[str]:
    """Pieces of all that captions may say, and of the words that usual templates need."""
    index = np.arange(4000)
    spec = cluttered.pre_training(seed, index)
    texts = [*words.NAMES, *words.PLURALS, *world.COLOURS, *world.PATTERNS, *SHAPES]
    texts += ["photo picture image a an the of many art object objects shapes group class 0 1 2 3 4 5 6 7 8 9"]
    texts += [*cluttered.REMARKS, *cluttered.ABOUT_SHAPES]
    texts += cluttered.captions(spec, np.where(spec["shown"], spec["kind"][:, 0], -2), np.full(len(index), 3))
    return build_pieces(texts)


def start_from(folder: Path, model: torch.nn.Module, tokenizer: TinyTokenizer) -> None:
    """Weights of a CLIP of another canvas, context and vocabulary: positions of patches are interpolated, words that
    both know keep their embedding, and positions that the text tower did not have stay as they are."""
    old, known = load_file(folder / "model.safetensors"), TinyTokenizer.load(folder / "vocab.json")
    old, state = {name: value.float() for name, value in old.items()}, model.state_dict()
    first, cells = old["visual.positional_embedding"][:1], old["visual.positional_embedding"][1:]
    grid, wide = (round(len(v) ** 0.5) for v in (cells, state["visual.positional_embedding"][1:]))
    planes = interpolate(cells.T.view(1, -1, grid, grid), (wide, wide), mode="bicubic", align_corners=False)
    old["visual.positional_embedding"] = torch.cat([first, planes.view(cells.shape[1], -1).T])
    words = state["token_embedding.weight"].clone()
    both = [(tokenizer.ids[piece], known.ids[piece]) for piece in tokenizer.pieces if piece in known.ids]
    pairs = torch.tensor([(0, 0), *both, (tokenizer.start, known.start), (tokenizer.end, known.end)])
    words[pairs[:, 0]] = old["token_embedding.weight"][pairs[:, 1]]
    old["token_embedding.weight"] = words
    old["positional_embedding"] = torch.cat(
        [old["positional_embedding"], state["positional_embedding"][len(old["positional_embedding"]) :]]
    )
    model.load_state_dict(old)
