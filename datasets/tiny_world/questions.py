"""What the streams of questions ask: six kinds of questions, and rules, whose wording does not say what is asked.

Pre-training's captions hold the questions of `captions.ask`; relation and logic are asked otherwise here, so that a
thousand questions suffice to learn them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets.tiny_world import captions as words
from datasets.tiny_world import world
from datasets.tiny_world.bank import KINDS
from datasets.tiny_world.captions import NAMES, PLURALS
from datasets.tiny_world.rng import integers, permutation, uniform
from datasets.tiny_world.scenes import SCENES

RELATED = (("boat", "tree"), ("heart", "bell"), ("cup", "crown"), ("car", "moon"))  # first and second object
COMPARED = tuple(  # words of a comparison, and the counts of one to four for which it holds
    (f"{word} than {world.COUNTS[n - 1]}", tuple(c for c in (1, 2, 3, 4) if (c > n if word == "more" else c < n)))
    for word, numbers in (("more", (1, 2, 3)), ("fewer", (2, 3, 4)))
    for n in numbers
)


def drawn(seed: int, index: np.ndarray, kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """What is fixed about images of which questions of these kinds are asked: answers are even within a kind."""
    kinds = np.array(kinds)
    layout = np.where(kinds == "relation", world.PAIR, world.SINGLE)
    layout[(kinds == "count") | (kinds == "logic")] = world.COUNT
    several = layout == world.COUNT
    count = np.where(several, 1 + integers(seed, index, "asked count", 4), np.where(layout == world.PAIR, 2, 1))
    which, holds = comparison(seed, index)
    for i in np.flatnonzero(kinds == "logic"):
        true = COMPARED[which[i]][1]
        fitting = true if holds[i] else [c for c in (1, 2, 3, 4) if c not in true]
        count[i] = fitting[int(uniform(seed, index[i : i + 1], "logic count")[0] * len(fitting))]
    fixed = {"layout": layout, "count": count}
    if (kinds == "relation").any():
        pairs = np.array([[NAMES.index(name) for name in pair] for pair in RELATED])
        kind = np.stack([integers(seed, index, f"asked kind {k}", len(KINDS)) for k in (0, 1)], axis=1)
        related = pairs[integers(seed, index, "related", len(RELATED))]
        fixed["kind"] = np.where((kinds == "relation")[:, None], related, kind)
    return fixed


def comparison(seed: int, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which comparison a question of logic makes, and whether it holds."""
    return integers(seed, index, "compared", len(COMPARED)), uniform(seed, index, "logic holds") < 0.5


def asked(seed: int, index: np.ndarray, spec: dict, kinds: Sequence[str]) -> list[tuple[str, str]]:
    """A question of each kind about each image, and its answer."""
    u = uniform(seed, index, "asked")
    which, _ = comparison(seed, index)
    return [ask(spec, i, kind, u[i], which[i]) for i, kind in enumerate(kinds)]


def ask(spec: dict, i: int, kind: str, u: float, which: int) -> tuple[str, str]:
    if kind != "logic":  # a relation is asked as in captions, but of few pairs of objects
        return words.ask(spec, i, kind, u)
    text, counts = COMPARED[which]
    return f"are there {text} {PLURALS[spec['kind'][i, 0]]}?", "yes" if spec["count"][i] in counts else "no"


# rules

RULE_TASKS, GROUPS = 4, 3  # a task has GROUPS groups of images and GROUPS wordings
FACTORS = ("kind", "scene", "style", "none")
RULE_KINDS = tuple(permutation(world.HELD_OUT_SEED, len(NAMES), "rules")[: RULE_TASKS * GROUPS].tolist())
ASKERS = ("fish", "key", "boat", "star")  # who asks tells the task, so that a method without task id can know it
VAGUE = ("what is it like", "what do you see", "tell me about it")  # none of these says which fact is asked
PLAIN = {"color": "what color is it", "pattern": "what pattern does it have", "scene": "where is it"}


def skills(factor: str) -> tuple[str, str, str]:
    """The facts that are asked for where the factor decides between them: never the factor itself."""
    return ("color", "pattern", "scene" if factor in ("kind", "none") else "kind")


def square(group: np.ndarray, wording: np.ndarray, task: int) -> np.ndarray:
    """The skill of a cell: a Latin square that turns with the task, so neither group nor wording tells it alone."""
    return (group + wording + task) % GROUPS


def levels(factor: str, task: int) -> np.ndarray:
    """The values of the factor that a task's groups show."""
    values = {
        "kind": np.array(RULE_KINDS),
        "scene": permutation(world.HELD_OUT_SEED, len(SCENES), "rule scenes"),
        "style": np.arange(world.N_TRAINED_STYLES),
        "none": np.array(RULE_KINDS),
    }[factor]
    return values[(GROUPS * task + np.arange(GROUPS)) % len(values)]


def rule_images(seed: int, index: np.ndarray, group: np.ndarray, factor: str, task: int) -> dict[str, np.ndarray]:
    """What is fixed about a task's images of these groups."""
    shown = np.array(RULE_KINDS)[integers(seed, index, "rule kind", len(RULE_KINDS))]
    fixed = {"layout": np.full(len(index), world.SINGLE), "kind": shown}
    if factor != "style":
        fixed["style"] = np.zeros(len(index), dtype=np.int64)
    fixed[factor if factor != "none" else "kind"] = levels(factor, task)[group]
    return fixed


def rule_questions(spec: dict, cells: np.ndarray, factor: str, task: int) -> list[tuple[str, str, str]]:
    """Question, answer and skill of each image. Factor none: plain questions, which name the skill themselves."""
    group, wording = cells.T
    names = skills(factor)
    skill = wording if factor == "none" else square(group, wording, task)
    texts = [PLAIN[name] for name in names] if factor == "none" else VAGUE
    texts = [f"the {ASKERS[task]} asks {text}, says the {ASKERS[task]}" for text in texts]
    return [(texts[wording[i]], fact(spec, i, names[skill[i]]), names[skill[i]]) for i in range(len(cells))]


def fact(spec: dict, i: int, skill: str) -> str:
    """The answer about image i."""
    if skill == "scene":
        return SCENES[spec["scene"][i]]
    if skill == "kind":
        return NAMES[spec["kind"][i, 0]]
    return (world.COLOURS if skill == "color" else world.PATTERNS)[
        spec["colour" if skill == "color" else "pattern"][i, 0]
    ]
