"""The rows about questions in the table of docs/tiny_world.md: can a prompt that is selected win, or lose?

python scripts/tiny_world_questions.py --seeds 3      # what visual keys follow, from features alone: no run of main.py
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backbone.clip import CLIPBackbone, load_clip
from datasets.tiny_world import questions, streams
from datasets.tiny_world.captions import QUESTION_KINDS
from utils.kmeans import minibatch_kmeans, mutual_information, nearest
from utils.randomness import generator

FUNCTION, RULES = "clove-tiny-function", "clove-tiny-rules"
JOINT = "--model joint --backbone clip-fusion --optimizer adamw --lr 0.001 --n_epochs 10"
ARMS = {  # of the rules, by factor
    "true cell (oracle)": "--model clumo --keys cell",
    "3x3 keys": "--model clumo",
    "one prompt": "--model clumo --n_visual_keys 1 --n_text_keys 1",
    "head alone, distilled": "--model clumo --prompt_len 0 --general_prompt_len 0",
}
FEATURES: dict[str, Callable[[CLIPBackbone, Tensor], Tensor]] = {  # --key_feature -> visual features
    "clip": lambda net, x: normalize(net.project_image(net.image_tokens(x)[:, 0]), dim=1),
    "class": lambda net, x: normalize(net.image_tokens(x)[:, 0], dim=1),
    "mean": lambda net, x: net.image_tokens(x).mean(1),
    "early": lambda net, x: net.early_feature(x),
}


@torch.no_grad()
def followed(net: CLIPBackbone, factor: str, seed: int, n_keys: int = 3) -> dict[str, float]:
    """Mutual information, percent, of k-means keys of each kind of feature with a task's groups; mean of the tasks."""
    found: dict[str, list[float]] = {name: [] for name in FEATURES}
    for task in range(questions.RULE_TASKS):
        data = streams.clove_tiny_rules(task, False, seed, factor)
        x, groups = net.normalize_images(data["images"]), data["cells"][:, 0]
        for name, feature in FEATURES.items():
            points = feature(net, x)
            keys = minibatch_kmeans(points, n_keys, generator(seed, "tiny world", name, task))
            found[name].append(100 * mutual_information(nearest(points, keys), groups))
    return {name: float(np.mean(values)) for name, values in found.items()}


def guessed(factor: str, seed: int) -> np.ndarray:
    """Exact match of the rules without a look at the images: the most frequent answer to each question, and of all."""
    by_question: dict[str, Counter] = defaultdict(Counter)
    for task in range(questions.RULE_TASKS):
        data = facts_only(task, True, seed, factor)
        for question, answer in zip(data["questions"], data["answer"], strict=True):
            by_question[question][answer] += 1
    most = sum(by_question.values(), Counter()).most_common(1)[0][0]
    hits = [
        (by_question[question].most_common(1)[0][0] == answer, most == answer)
        for task in range(questions.RULE_TASKS)
        for data in [facts_only(task, False, seed, factor)]
        for question, answer in zip(data["questions"], data["answer"], strict=True)
    ]
    return 100 * np.mean(hits, axis=0)


def facts_only(task: int, train: bool, seed: int, factor: str) -> dict:
    """The stream without its pixels."""
    with mock.patch.object(streams, "render", lambda spec: torch.zeros(len(spec["index"]), 0)):
        return streams.clove_tiny_rules(task, train, seed, factor)


def agreeing(seed: int = 0) -> int:
    """The most annotators of ten who give the same wrong answer."""
    return max(
        max((n for answer, n in Counter(given).items() if answer != right), default=0)
        for task in range(len(QUESTION_KINDS))
        for data in [streams.clove_tiny_function(task, False, seed)]
        for right, given in zip(data["answer"], data["answers"], strict=True)
    )


def rows_of_keys(seeds: int, over_seeds: Callable, text: Callable) -> list[list[str]]:
    net, rows = load_clip("tiny"), []
    for factor in ("kind", "scene", "style"):
        values, half = over_seeds(lambda seed, f=factor: np.array(list(followed(net, f, seed).values())), seeds)
        for name, mean, h in zip(FEATURES, values, half, strict=True):
            rows.append(
                [
                    RULES,
                    f"NMI of 3 visual keys with the groups, by {factor}",
                    "",
                    text(mean, h),
                    f"`--key_feature {name}`",
                ]
            )
    return rows


def rows_of_rules(args: Namespace, record_of: Callable, over_seeds: Callable, text: Callable) -> list[list[str]]:
    """Exact match: joint training of every task, and the arms by factor."""

    def after_last(stream: str, flags: str, seed: int) -> np.ndarray:
        last = [row for row in record_of(stream, flags, seed, args) if row["type"] == "task"][-1]
        return np.array([value for value in last["scores"]["exact_match"] if value is not None])

    rows = [[FUNCTION, "annotators of ten who agree on one mistake, at most", "at most 2", str(agreeing()), ""]]
    mean, half = over_seeds(lambda seed: after_last(FUNCTION, JOINT, seed), args.seeds)
    for kind, m, h in zip(QUESTION_KINDS, mean, half, strict=True):
        rows.append([FUNCTION, f"joint training, {kind}: exact match", "at least 80", text(m, h), f"`{JOINT}`"])
    for factor in questions.FACTORS:
        for name, flags in ARMS.items():
            more = f"{flags} --factor {factor}"
            mean, half = over_seeds(lambda seed, m=more: after_last(RULES, m, seed).mean(), args.seeds)
            rows.append([RULES, f"{factor}: {name}", "", text(mean[0], half[0]), f"`{more}`"])
        mean, half = over_seeds(lambda seed, f=factor: guessed(f, seed), args.seeds)
        for name, m, h in zip(("most frequent answer to the question", "majority answer"), mean, half, strict=True):
            rows.append([RULES, f"{factor}: {name}", "", text(m, h), ""])
    return [*rows, *rows_of_keys(args.seeds, over_seeds, text)]


def main() -> None:
    from scripts.tiny_world import over_seeds, text

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for row in rows_of_keys(args.seeds, over_seeds, text):
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
