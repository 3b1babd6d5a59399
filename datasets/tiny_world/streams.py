"""The streams made of the picture world, as raw arrays: pure functions of (train, seed), no framework in sight.

Every stream draws from seeds of its own, and from drawings (proportions of the shapes) that pre-training never saw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from datasets.tiny_world import cluttered, questions, world
from datasets.tiny_world.bank import FIRST_DIGIT
from datasets.tiny_world.captions import NAMES, PLURALS, QUESTION_KINDS, article
from datasets.tiny_world.render import render
from datasets.tiny_world.rng import integers, permutation, uniform
from datasets.tiny_world.scenes import SCENE_PHRASES, SCENES

BANK_SEED = 7  # of the drawings; pre-training uses 0
_TEST_OFFSET = 1 << 24  # test pictures have indices that no training picture reaches
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.")
_BARE_TEMPLATES = ("a photo of {}.", "a picture of {}.", "an image of {}.")  # for names that bring their article

SEQ_TINY_SIZE = {True: 100, False: 30}  # pictures per class for train and test
MTIL_SIZE = {True: 80, False: 30}
CLOVE_SIZE = {True: 1000, False: 300}  # questions per task
RULES_SIZE = {True: 1080, False: 297}  # the same of the rules, a multiple of the nine cells
MM_SIZE = {True: 40, False: 20}  # pictures per class


def _rng_seed(stream: str, seed: int) -> int:
    """A seed far from those of pre-training, one per stream."""
    return (
        1000
        + 100 * seed
        + ("seq", "objects", "textures", "counts", "scenes", "relations", "signs", "clove", "mm").index(stream)
    )


def _indices(n: int, train: bool) -> np.ndarray:
    return np.arange(n) + (0 if train else _TEST_OFFSET)


def _labels(n_classes: int, per_class: int) -> np.ndarray:
    """Classes by turns: 0 1 2 ... 0 1 2 ..., so any prefix is balanced."""
    return np.tile(np.arange(n_classes), per_class)


def seq_tiny_pairs() -> np.ndarray:
    """(60, 2) kind and pattern of each class: the pairs that pre-training never showed, in a fixed shuffled order."""
    pairs = world.held_out_patterns()
    return pairs[permutation(world.HELD_OUT_SEED, len(pairs), "stream")]


def seq_tiny_names() -> list[str]:
    return [f"{world.PATTERNS[pattern]} {NAMES[kind]}" for kind, pattern in seq_tiny_pairs()]


def seq_tiny(
    train: bool, seed: int = 0, style: str = "stitched", strength: float = 0.9, flat_share: float = 0.0
) -> dict:
    """60 never-captioned combinations ("striped fish") in a never-seen style: images, labels, names, templates.
    A share of the images may be in the flat style, the most frequent one of pre-training."""
    pairs = seq_tiny_pairs()
    labels = _labels(len(pairs), SEQ_TINY_SIZE[train])
    index = _indices(len(labels), train)
    flat = uniform(_rng_seed("seq", seed), index, "flat share") < flat_share
    spec = world.sample(
        _rng_seed("seq", seed),
        index,
        BANK_SEED,
        layout=world.SINGLE,
        kind=pairs[labels, 0],
        pattern=pairs[labels, 1],
        style=np.where(flat, world.STYLES.index("flat"), world.STYLES.index(style)),
    )
    return {
        "images": render(spec, strength=strength),
        "labels": torch.from_numpy(labels),
        "names": seq_tiny_names(),
        "templates": list(TEMPLATES),
    }


MTIL_DOMAINS = ("objects", "textures", "counts", "scenes", "relations", "signs")
MTIL_ORDERS = {
    "I": ("counts", "objects", "relations", "scenes", "signs", "textures"),  # alphabetical
    "II": ("objects", "signs", "scenes", "textures", "counts", "relations"),
}
_GRAINED = tuple(name for name in world.TEXTURES if name != "faded")  # a fade has no grain
_COUNTED = ("star", "fish", "key", "apple")
_RELATED = (("boat", "tree"), ("heart", "bell"), ("cup", "crown"), ("car", "moon"))


def _kind(name: str) -> int:
    return NAMES.index(name)


def mtil_templates(domain: str) -> list[str]:
    """The domain's own prompts."""
    own = {"textures": ["a {} texture.", "a photo of a {} texture."], "objects": list(TEMPLATES)}
    own["signs"] = [template.replace("a {}", "the digit {}") for template in TEMPLATES]
    return own.get(domain, list(_BARE_TEMPLATES))


def mtil_names(domain: str) -> list[str]:
    """Class names of a domain as they go into its templates."""
    if domain == "objects":
        return list(NAMES)
    if domain == "textures":
        return [f"{grain} {name}" for name in _GRAINED for grain in ("fine", "coarse")]
    if domain == "counts":
        return [f"{n} {(NAMES if n == 'one' else PLURALS)[_kind(k)]}" for k in _COUNTED for n in world.COUNTS]
    if domain == "scenes":
        return [f"an object {phrase}" for phrase in SCENE_PHRASES]
    if domain == "relations":
        return [f"{article(a)} {r} {article(b)}" for a, b in _RELATED for r in world.RELATIONS]
    return [str(n) for n in range(10)]


def mtil_tiny(domain: str, train: bool, seed: int = 0) -> dict:
    """One domain: images, labels, names, templates.

    Pre-training never captions signs nor the grain of textures, and names textures in one picture of 200.
    """
    names = mtil_names(domain)
    labels = _labels(len(names), MTIL_SIZE[train])
    fixed: dict = {"layout": world.SINGLE}
    if domain == "objects":
        fixed |= {"kind": labels, "style": world.STYLES.index("warped")}
    elif domain == "textures":
        pattern = np.array([world.TEXTURE_IDS[world.TEXTURES.index(name)] for name in _GRAINED])[labels // 2]
        fixed = {"layout": world.TEXTURE, "pattern": pattern, "style": 0, "zoom": np.where(labels % 2, 1.4, 0.75)}
    elif domain == "counts":
        fixed = {
            "layout": world.COUNT,
            "kind": np.array([_kind(k) for k in _COUNTED])[labels // 4],
            "count": labels % 4 + 1,
        }
    elif domain == "scenes":
        fixed |= {"scene": labels, "style": world.STYLES.index("noisy")}
    elif domain == "relations":
        pairs = np.array([[_kind(a), _kind(b)] for a, b in _RELATED])
        fixed = {"layout": world.PAIR, "kind": pairs[labels // 4], "relation": labels % 4}
    else:
        fixed = {"layout": world.DIGIT, "kind": FIRST_DIGIT + labels, "pattern": 0, "scene": 0, "style": 0}
    spec = world.sample(_rng_seed(domain, seed), _indices(len(labels), train), BANK_SEED, **fixed)
    return {
        "images": render(spec, strength=0.8 if domain == "objects" else 0.5),
        "labels": torch.from_numpy(labels),
        "names": names,
        "templates": mtil_templates(domain),
    }


_CONFUSED = {  # what a careless annotator says instead
    "red": "orange",
    "orange": "red",
    "yellow": "orange",
    "green": "blue",
    "blue": "purple",
    "purple": "blue",
    "pink": "red",
    "brown": "orange",
    "black": "brown",
    "white": "yellow",
    "plain": "faded",
    "striped": "checked",
    "dotted": "checked",
    "checked": "dotted",
    "faded": "plain",
    "outlined": "plain",
    "one": "two",
    "two": "three",
    "three": "four",
    "four": "three",
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "yes": "no",
    "no": "yes",
    "paper": "snow",
    "snow": "paper",
    "meadow": "forest",
    "forest": "meadow",
    "sea": "night",
    "night": "sea",
    "desert": "paper",
    "brick wall": "desert",
}
N_ANNOTATORS, MOST_WRONG = 10, 2


def annotators(answers: Sequence[str], seed: int, index: np.ndarray) -> list[list[str]]:
    """Ten answers to each question: at most two are wrong and agree on a likely mistake, which earns up to .6 in soft
    accuracy and nothing in exact match."""
    n_wrong = integers(seed, index, "wrong annotators", MOST_WRONG + 1)
    out = []
    for answer, wrong, where in zip(answers, n_wrong, integers(seed, index, "wrong place", N_ANNOTATORS), strict=True):
        mistake = _CONFUSED.get(answer) or NAMES[(_kind(answer) + 1) % len(NAMES)]
        given = [mistake] * int(wrong) + [answer] * int(N_ANNOTATORS - wrong)
        out.append(given[where:] + given[:where])
    return out


CLOVE_SCENES = ("meadow", "sea", "night", "desert", "snow", "brick wall")


def _questions(seed: int, index: np.ndarray, kinds: Sequence[str], scene: np.ndarray | None) -> dict:
    """Pictures with one question each, of the given kinds; answers are drawn evenly within a kind."""
    fixed = questions.drawn(seed, index, kinds)
    if scene is not None:
        fixed["scene"] = scene
    spec = world.sample(seed, index, BANK_SEED, **fixed)
    asked = questions.asked(seed, index, spec, kinds)
    answers = [answer for _, answer in asked]
    return {
        "images": render(spec),
        "questions": [question for question, _ in asked],
        "answer": answers,
        "answers": annotators(answers, seed, index),
        "kinds": list(kinds),
    }


def clove_tiny_function(task: int, train: bool, seed: int = 0) -> dict:
    """VQA by question kind: task t asks only QUESTION_KINDS[t]. Keys: images, questions, answer, answers, kinds."""
    n = CLOVE_SIZE[train]
    index = _indices(n, train) + n * 10 * task
    return _questions(_rng_seed("clove", seed), index, [QUESTION_KINDS[task]] * n, None)


def clove_tiny_scene(task: int, train: bool, seed: int = 0) -> dict:
    """VQA by scene: task t shows only CLOVE_SCENES[t] and asks all kinds but "scene" by turns."""
    n = CLOVE_SIZE[train]
    index = _indices(n, train) + n * (100 + 10 * task)
    kinds = [kind for kind in QUESTION_KINDS if kind != "scene"]
    scene = np.full(n, SCENES.index(CLOVE_SCENES[task]))
    return _questions(_rng_seed("clove", seed), index, [kinds[i % len(kinds)] for i in range(n)], scene)


def clove_tiny_rules(task: int, train: bool, seed: int = 0, factor: str = "kind") -> dict:
    """VQA by rules: which fact is asked follows from a group of images and a wording that does not name it, by a Latin
    square that turns with the task. Keys: those of the other streams, and cells (N, 2): group and wording."""
    n = RULES_SIZE[train]
    index = _indices(n, train) + n * (1000 + 10 * task)
    cells = np.stack(np.divmod(np.arange(n) % questions.GROUPS**2, questions.GROUPS), axis=1)  # by turns
    fixed = questions.rule_images(_rng_seed("clove", seed), index, cells[:, 0], factor, task)
    spec = world.sample(_rng_seed("clove", seed), index, BANK_SEED, **fixed)
    asked = questions.rule_questions(spec, cells, factor, task)
    answers = [answer for _, answer, _ in asked]
    return {
        "images": render(spec),
        "questions": [question for question, _, _ in asked],
        "answer": answers,
        "answers": annotators(answers, _rng_seed("clove", seed), index),
        "kinds": [skill for _, _, skill in asked],
        "cells": torch.from_numpy(cells),
    }


MM_CLASSES = 20
MM_SHOWN, MM_TOLD = 0.75, 0.5  # how often the picture, and the text, holds evidence; never neither
MM_EVIDENCE = ("image_only", "caption_only", "both")


def mm_tiny_kinds() -> np.ndarray:
    """(20, 2) the two object kinds that make up each class."""
    return permutation(world.HELD_OUT_SEED, len(NAMES), "mm").reshape(MM_CLASSES, 2)


def mm_tiny(train: bool, seed: int = 0) -> dict:
    """Pictures of the cluttered world with captions, 20 classes named only by number: images, captions, labels, names,
    evidence (number in MM_EVIDENCE) and cells (patches that the object covers).

    A picture shows two or three shapes and, small among them, an object of one of its class's two kinds, or no object;
    the caption names one of the two kinds, not always the one drawn, or just an object. Shapes, scene, colour, pattern,
    place and all other words are drawn without regard to the class: background, and no evidence.
    """
    labels = _labels(MM_CLASSES, MM_SIZE[train])
    s, index = _rng_seed("mm", seed), _indices(len(labels), train)
    shown = uniform(s, index, "shown") < MM_SHOWN
    told = (uniform(s, index, "told") < MM_TOLD) | ~shown
    kinds = mm_tiny_kinds()[labels]  # (B, 2)
    rows = np.arange(len(labels))
    spec = cluttered.sample(
        s,
        index,
        BANK_SEED,
        kind=kinds[rows, integers(s, index, "shown kind", 2)],
        shown=shown,
        scale=0.36 + 0.08 * uniform(s, index, "scale"),
        shapes=2 + integers(s, index, "shapes", 2),
    )
    named = np.where(told, kinds[rows, integers(s, index, "told kind", 2)], -1)
    return {
        "images": cluttered.pictures(spec),
        "captions": cluttered.captions(spec, named, 2 + integers(s, index, "sentences", 2)),
        "labels": torch.from_numpy(labels),
        "names": [f"group {c}" for c in range(MM_CLASSES)],
        "evidence": torch.from_numpy(np.where(~told, 0, np.where(~shown, 1, 2))),
        "cells": cluttered.object_cells(spec),
    }
