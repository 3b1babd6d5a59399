"""The shape of a stream of classes: which, in which order, how many per task, and which training images.

Everything here reads labels alone, so it fits every source of samples. All draws are keyed by a seed.
"""

import hashlib
import json
import random
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from utils.cli.signatures import arguments_for
from utils.errors import UserError, shown
from utils.randomness import generator
from utils.settings import SPLIT_SETTINGS, option

ORDERS = Path(__file__).resolve().parents[1] / "protocols" / "orders"
ORDER_FLAGS = ("permute_classes", "custom_class_order", "custom_task_order", "class_order_list")
IMAGE_FLAGS = ("shots", "imbalance", "blurry")
NEEDS = ("imbalance_shuffle", "shots_seed", "class_order_direction")
SHAPE_FLAGS = ("first_classes", "classes_per_task", "classes", *IMAGE_FLAGS)


def permutation_of(order, n: int, flag: str) -> list[int]:
    if order is None:
        return list(range(n))
    order = [int(i) for i in order]
    if sorted(order) != list(range(n)):
        raise UserError(f"{flag} must hold each of 0..{n - 1} once; it has {len(order)} entries: {order}")
    return order


def order_list(name: str, n: int) -> list[int]:
    """A permutation of n classes: natural, permN, shuffleN, a list of datasets/protocols/orders, or a file."""
    kind, seed = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
    if name == "natural":
        return list(range(n))
    if kind == "perm" and seed and int(seed) < 2**32:
        return np.random.RandomState(int(seed)).permutation(n).tolist()
    if kind == "shuffle" and seed:
        order = list(range(n))
        random.Random(int(seed)).shuffle(order)
        return order
    path = ORDERS / f"{name}.txt" if "/" not in name and (ORDERS / f"{name}.txt").is_file() else Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in ORDERS.glob("*.txt")))
        raise UserError(
            f"--class_order_list {shown(name)}: no such list; give natural, permN, shuffleN, one of {known}, or a file"
        )
    try:
        order = [int(word) for word in path.read_text(encoding="utf-8-sig").replace(",", " ").split()]
    except (ValueError, OSError) as error:
        raise UserError(f"--class_order_list {shown(name)}: {path} is not a list of integers ({error})") from None
    return permutation_of(order, n, f"--class_order_list {shown(name)} ({path.name})")


def list_order(args: Namespace, n: int) -> np.ndarray:
    """order[raw] = label of --class_order_list. By index the list holds the classes in their order."""
    listed = np.asarray(order_list(args.class_order_list, n))
    return listed if option(args, "class_order_direction", "index") == "value" else np.argsort(listed)


def chosen_classes(spec: str, n: int, known: Callable[[], list[str]], stream: str) -> list[int]:
    """Raw labels that --classes keeps, ascending."""
    if spec.startswith("first:"):
        count = spec.removeprefix("first:")
        if not count.isdecimal() or not 1 <= int(count) <= n:
            raise UserError(f"--classes {shown(spec)}: {stream} has {n} classes; give first:1 to first:{n}")
        return list(range(int(count)))
    path = Path(spec).expanduser()
    if not path.is_file():
        raise UserError(f"--classes {shown(spec)}: give first:N, or a file with one class name per line")
    names = known()
    wanted = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    place = {name: raw for raw, name in enumerate(names)}
    unknown = [name for name in wanted if name not in place]
    if unknown or not wanted or len(set(wanted)) < len(wanted):
        what = f"{stream} has no class '{shown(unknown[0])}'" if unknown else "it is empty or names a class twice"
        raise UserError(f"--classes {path}: {what}; {len(names)} names are known, the first is '{names[0]}'")
    return sorted(place[name] for name in wanted)


def task_sizes(args: Namespace, n: int, declared: int | list[int]) -> list[int] | None:
    """Classes of each task by the flags: the first, equal ones, and what remains; None if they are not given."""
    first, each = option(args, "first_classes"), option(args, "classes_per_task")
    if first is None and each is None:
        return None
    each = each or (declared if isinstance(declared, int) else max(declared))
    first = first or each
    if first > n:
        raise UserError(f"--first_classes {first} is more than the {n} classes of the stream: lower it")
    if each > n:
        raise UserError(f"--classes_per_task {each} is more than the {n} classes of the stream: lower it")
    whole, rest = divmod(n - first, each)
    return [first] + [each] * whole + ([rest] if rest else [])


def in_use(args: Namespace) -> dict[str, object]:
    """The flags of the shape that change something."""
    idle = {"imbalance": 1.0}
    return {flag: value for flag in SHAPE_FLAGS if (value := option(args, flag)) and value != idle.get(flag)}


def check_flags(stream: "ShapedStream") -> None:
    """Refuse flags of the shape that the stream or another flag rules out."""
    args, own_shots = stream.args, stream.DRAWS_SHOTS
    given = [flag for flag in in_use(args) if not (own_shots and flag == "shots")]
    fits_domains = set(given) <= {"shots", "imbalance"}
    if given and (stream.SETTING not in SPLIT_SETTINGS or (stream.MTIL and not fits_domains)):
        why = "its tasks are domains" if stream.MTIL else f"it is {stream.SETTING}"
        raise UserError(f"--{given[0]} needs a stream whose classes can be split anew; {stream.NAME} cannot: {why}")
    for flag, other in (
        ("imbalance_shuffle", "imbalance"),
        ("shots_seed", "shots"),
        ("class_order_direction", "class_order_list"),
    ):
        if option(args, flag) is not None and not option(args, other) and not (own_shots and other == "shots"):
            raise UserError(f"--{flag} needs --{other}")
    for flag, others, why in (
        ("shots", ("imbalance",), "both choose the training images of a class"),
        ("blurry", ("joint",), "joint training has one task"),
        ("custom_task_order", ("first_classes", "classes_per_task", "classes"), "it orders the stream's own tasks"),
    ):
        clash = [other for other in others if option(args, flag) and option(args, other)]
        if clash:
            raise UserError(f"--{flag} and --{clash[0]} contradict each other ({why}): use one")


def keep_of_class(targets: torch.Tensor, counts: torch.Tensor, key: tuple) -> torch.Tensor:
    """Mask of counts[c] samples of each class c >= 0, drawn by the key; all of a class that has fewer."""
    order = torch.randperm(len(targets), generator=generator(*key))
    by_class = order[targets[order].argsort(stable=True)]  # shuffled inside each class
    labels = targets[by_class]
    place = torch.arange(len(labels)) - torch.searchsorted(labels, labels)  # in the class
    kept = torch.zeros(len(targets), dtype=torch.bool)
    kept[by_class[(labels >= 0) & (place < counts[labels.clamp(min=0)])]] = True
    return kept


def tail_counts(targets: torch.Tensor, n_classes: int, ratio: float, rank: torch.Tensor) -> torch.Tensor:
    """Images that each class keeps: floor(n_c * ratio^(-rank_c / (C - 1))), at least one."""
    own = torch.bincount(targets[targets >= 0], minlength=n_classes).double()
    share = ratio ** (-rank.double() / max(n_classes - 1, 1))
    return (own * share + 1e-9).floor().long().clamp(min=1)


def kept_images(
    args: Namespace, targets: torch.Tensor, n_classes: int, name: str, own_shots: bool
) -> torch.Tensor | None:
    """Mask of the training images that --shots or --imbalance keep; None for all."""
    seed, shots, ratio = option(args, "seed", 0), option(args, "shots", 0), option(args, "imbalance", 1.0)
    if shots and not own_shots:
        counts = torch.full((n_classes,), shots)
        return keep_of_class(targets, counts, ("shots", option(args, "shots_seed", seed), name))
    if ratio > 1:
        rank = torch.arange(n_classes)
        if option(args, "imbalance_shuffle"):
            rank = torch.randperm(n_classes, generator=generator(seed, "imbalance", name))
        return keep_of_class(targets, tail_counts(targets, n_classes, ratio, rank), (seed, "imbalance images", name))
    return None


def blurred_tasks(
    args: Namespace, targets: torch.Tensor, kept: torch.Tensor, sizes: list[int], name: str
) -> torch.Tensor:
    """Task of each training image under --blurry N,M (i-Blurry, Koh et al., ICLR 2022).

    N % of the classes are disjoint: all their images are in their own task. Each other class leaves round(M %) of its
    images, drawn, to the other tasks by turns.
    """
    percent, level = args.blurry
    seed = option(args, "seed", 0)
    own = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))  # task of each label
    task = torch.where(targets >= 0, own[targets.clamp(min=0)], -1)
    shuffled = torch.randperm(len(own), generator=generator(seed, "blurry classes", name))
    for label in shuffled[round(len(own) * percent / 100) :].tolist():
        rows = torch.nonzero((targets == label) & kept).flatten()
        draw = generator(seed, "blurry images", name, label)
        leaving = rows[torch.randperm(len(rows), generator=draw)[: round(len(rows) * level / 100)]]
        others = torch.tensor([t for t in range(len(sizes)) if t != int(own[label])])
        others = others[torch.randperm(len(others), generator=draw)]
        task[leaving] = others[torch.arange(len(leaving)) % len(others)]
    return task


class ShapedStream:
    """What a stream adds to its file: a part of the classes, other tasks, and a part of the training images."""

    args: Namespace
    NAME: str
    SETTING: str
    N_TASKS: int
    N_CLASSES: int
    N_CLASSES_PER_TASK: int | list[int]
    MTIL: bool
    DRAWS_SHOTS = False  # True: the file itself draws --shots
    n_published: int  # classes of the source, those that --classes leaves out too
    chosen: list[int] | None = None  # raw labels that --classes keeps
    _sizes: tuple[int, ...] = ()  # classes of each task, with --blurry
    _kept: tuple[torch.Tensor, torch.Tensor | None] | None = None  # what `kept` found

    def set_up_shape(self, declared: int | list[int]) -> None:
        """--classes, and the sizes of tasks."""
        self.n_published = self.N_CLASSES
        if option(self.args, "classes"):
            self.chosen = chosen_classes(self.args.classes, self.N_CLASSES, self.published_names, self.NAME)
            self.N_CLASSES = len(self.chosen)
        args = self.args
        if self.chosen is not None and not (option(args, "first_classes") or option(args, "classes_per_task")):
            each = declared if isinstance(declared, int) else max(declared)
            args = Namespace(classes_per_task=min(each, self.N_CLASSES))
        sizes = task_sizes(args, self.N_CLASSES, declared)
        if sizes is not None:
            self.N_TASKS, self.N_CLASSES_PER_TASK = len(sizes), sizes if len(set(sizes)) > 1 else sizes[0]

    def set_up_blur(self) -> None:
        """With --blurry a task may show any class, so all names compete from the start."""
        if not option(self.args, "blurry"):
            return
        self._sizes = tuple(end - start for start, end in map(self.get_offsets, range(self.N_TASKS)))
        if self.N_TASKS < 2:
            raise UserError(f"--blurry needs two tasks or more; {self.NAME} has one")
        self.SETTING = "general-continual"

    def published_names(self) -> list[str]:
        """Names of all classes of the source, in the order of the raw labels."""
        plain = dict.fromkeys((*SHAPE_FLAGS, *ORDER_FLAGS, *NEEDS, "joint", "underscores"))
        twin = type(self)(Namespace(**vars(self.args) | plain), **arguments_for(type(self), self.args))
        return twin.complete().get_class_names()

    @contextmanager
    def as_published(self) -> Iterator[None]:
        """Readers count the classes of the source."""
        count, self.N_CLASSES = self.N_CLASSES, self.n_published
        try:
            yield
        finally:
            self.N_CLASSES = count

    def kept(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Of labels of the training images: mask of those that --shots or --imbalance keep, tasks under --blurry."""
        if self._kept is None or len(self._kept[0]) != len(targets):
            mask = kept_images(self.args, targets, self.N_CLASSES, self.NAME, self.DRAWS_SHOTS)
            every = torch.ones(len(targets), dtype=torch.bool) if mask is None else mask
            tasks = blurred_tasks(self.args, targets, every, self._sizes, self.NAME) if self._sizes else None
            self._kept = every, tasks
        return self._kept

    def training_labels(self, targets: torch.Tensor) -> torch.Tensor:
        """Of labels of the training images, those of the classes and images in use."""
        return targets[(targets >= 0) & self.kept(targets)[0]]

    def shaped(self, fingerprint: str | None, targets: torch.Tensor | None) -> str | None:
        """The fingerprint of the source, and where flags of the shape are in use what they chose."""
        if fingerprint is None or not in_use(self.args):
            return fingerprint
        digest = hashlib.sha256(fingerprint.encode())
        digest.update(json.dumps(in_use(self.args) | {"classes": self.chosen}, sort_keys=True).encode())
        for part in () if targets is None else self.kept(targets):
            digest.update(b"none" if part is None else part.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def hits(self, predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Which predictions are right; with --merge_names any class of the same name is."""
        if not option(self.args, "merge_names"):
            return predictions == labels
        same = self.name_groups().to(labels.device)
        return same[predictions] == same[labels]

    def name_groups(self) -> torch.Tensor:
        """(C,) number of the first class with the same name."""
        first = {}
        return torch.tensor([first.setdefault(name, number) for number, name in enumerate(self.get_class_names())])
