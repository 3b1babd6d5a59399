"""Flags about the shape of a stream: what the protocols of published tables differ in. Standard library only."""

import argparse
from collections.abc import Callable

from utils.errors import shown
from utils.flags import boolean, natural, number, positive_int, sentences

TRANSFORMS = {
    "squash": "the whole image, its sides pulled to the size; no augmentation",
    "shorter": "the shorter side to the size, then the center; no augmentation",
    "crop": "training: a random part and flip; test: the shorter side to 8/7 of the size, then the center",
    "crop_raw": "as crop, pixels in [0, 1] without mean and deviation",
}


def two_percents(text: object) -> tuple[int, int]:
    """Argument type: two percentages, "50,10"."""
    parts = text if isinstance(text, (list, tuple)) else str(text).split(",")
    try:
        n, m = (int(part) for part in parts)
        if not (0 <= n <= 100 and 0 < m < 100):
            raise ValueError
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"'{shown(text)}' is not N,M in percent, for example 50,10: N % of the classes stay in one task, and M % "
            "(1 to 99) of the images of the others go to other tasks"
        ) from None
    return n, m


def add_stream_args(parser: argparse.ArgumentParser) -> None:
    """Flags that every stream of classes has; a protocol sets them."""
    group = parser.add_argument_group("shape of the stream")
    add_class_args(group.add_argument)
    add_view_args(group.add_argument)


def add_class_args(add: Callable) -> None:
    """Which classes come when, and with how many images."""
    add("--first_classes", type=positive_int, help="classes of the first task (default: --classes_per_task)")
    add(
        "--classes_per_task",
        type=positive_int,
        help="classes of each further task; the last one has what remains (default: the stream's own tasks)",
    )
    add("--classes", help="part of the classes: first:N, or a file with one class name per line")
    add(
        "--class_order_list",
        help="order of the classes: natural, permN (numpy, seed N), shuffleN (Python, seed N), a list of "
        "datasets/protocols/orders, or a file of integers",
    )
    add(
        "--class_order_direction",
        choices=["index", "value"],
        help="what the list holds: the classes in their order (index, default), or the place of each class (value)",
    )
    add("--shots", type=natural, help="training images of each class, 0 for all")
    add("--shots_seed", type=natural, help="seed of their draw (default: --seed)")
    add(
        "--imbalance",
        type=number(float, 1),
        help="long tail: the first class of the stream keeps all images, the last one 1 / IMBALANCE of them, "
        "exponentially between",
    )
    add("--imbalance_shuffle", type=boolean, help="ranks of the tail drawn by --seed, not in the order of the stream")
    add(
        "--blurry",
        type=two_percents,
        metavar="N,M",
        help="N %% of the classes in one task, M %% of the others' images elsewhere",
    )


def add_view_args(add: Callable) -> None:
    """How images and names are shown, and what is scored."""
    add(
        "--image_transform",
        choices=list(TRANSFORMS),
        help="size of an image: " + "; ".join(f"{k}: {v}" for k, v in TRANSFORMS.items()),
    )
    add(
        "--templates",
        type=sentences,
        nargs="+",
        help="sentences around class names in place of the stream's own, or a file with one per line; the first one "
        "trains",
    )
    add("--underscores", type=boolean, help="class names with _ for blanks")
    add(
        "--accuracy_weighting",
        choices=["tasks", "images"],
        default="tasks",
        help="what is shown first: means over tasks, or over the images of all classes seen; the record has both",
    )
    add(
        "--mtil_scoring",
        choices=["domain", "seen", "all"],
        default="domain",
        help="names that compete on a stream of domains, for what is shown first; the record has all three",
    )
    add("--merge_names", type=boolean, help="equal names of different tasks are one answer")
    add(
        "--probe",
        help="zero-shot probes outside the stream after each task: names of streams, folders with captions, tiny",
    )
