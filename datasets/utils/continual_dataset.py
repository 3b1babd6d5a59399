"""ContinualDataset: a sequence of tasks over shared samples, with the interface that Mammoth's files rely on."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torchvision import transforms as T

from datasets.utils import stream_shape as shape
from datasets.utils.fetch import base_path
from datasets.utils.image_cache import use_caches
from datasets.utils.image_check import check_images, files_of
from datasets.utils.labels import drop_labels, noisy_targets, validation_mask
from datasets.utils.loaders import Loader, Split
from datasets.utils.samples import Samples, as_samples, fingerprint_of
from datasets.utils.sources import Source
from datasets.utils.stream_shape import ShapedStream
from datasets.utils.stream_views import apply_views, transform_of
from utils.cli.signatures import arguments_for
from utils.errors import UserError
from utils.randomness import seeded
from utils.settings import SETTINGS, SPLIT_SETTINGS, option


class ContinualDataset(ShapedStream):
    """One subclass per file: declare the class fields and write `load(train)`.

    A file in Mammoth's style overrides `get_data_loaders` and calls `store_masked_loaders` instead of `load`.
    """

    NAME: str
    SETTING: str
    N_TASKS: int
    N_CLASSES_PER_TASK: int | list[int]
    N_CLASSES: int = None  # type: ignore[assignment]  # the constructor fills it in
    SIZE: tuple[int, int] | None = None
    MEAN: tuple[float, ...] | None = None
    STD: tuple[float, ...] | None = None
    TRANSFORM: Callable | None = None  # of a training image
    TEST_TRANSFORM: Callable | None = None
    TEMPLATES: list[str] = ["a photo of a {}."]
    CLASS_NAMES: list[str] | None = None  # in the order of the raw labels
    CLIP_BACKBONE = (
        "ViT-L/14"  # --clip_backbone of all methods and networks by default, as in Mammoth; DEFAULTS comes first
    )
    DEFAULTS: dict[str, object] = {}  # flag -> default, for example batch_size, n_epochs, backbone
    MISTAKEN_FOR: dict[int, int] | None = None  # asymmetric noise: raw class -> raw class
    FILES: tuple[Source, ...] = ()  # what must be on disk; none for a generated stream
    AVAIL_SCHEDS = ["multisteplr", "cosine"]
    EVIDENCE: tuple[str, ...] = ()  # kinds of evidence; samples.evidence (N,) is the number of a sample's
    HAS_TEXT = False  # samples are Pairs (image, token ids)
    VQA = False  # scores are named vqa_*; see datasets/utils/vqa.py
    MTIL = False  # tasks are domains, scored among their own names, those not yet trained included

    def __init__(self, args: Namespace):
        self.args = args
        self.c_task = -1
        self.train_loader: Any = None  # a Loader, or what a foreign file makes
        self.test_loaders: list[Loader] = []
        self.final_test_loaders: list[Loader] = []  # the real test sets, when --validation stands in for them
        self.unlabeled_mask: torch.Tensor | None = None
        self.class_names: list[str] | None = None
        self._samples: dict[bool, Samples] = {}
        self._complete = False
        if not self._lacks() or "__init__" not in vars(type(self)):
            self.complete()

    def _lacks(self) -> list[str]:
        return [n for n in ("NAME", "SETTING", "N_TASKS", "N_CLASSES_PER_TASK") if not hasattr(self, n)]

    def complete(self) -> "ContinualDataset":
        """Classes and their order, once the sizes are known: some files set them in their own constructor."""
        if self._complete:
            return self
        if self._lacks():
            raise UserError(f"dataset class {type(self).__name__} lacks {', '.join(self._lacks())}")
        if self.SETTING not in SETTINGS:
            raise UserError(f"{self.NAME}: SETTING '{self.SETTING}' is not one of {', '.join(SETTINGS)}")
        shape.check_flags(self)
        self._set_up_classes()
        self._set_up_order()
        self.set_up_blur()
        apply_views(self)
        self._complete = True
        return self

    def _set_up_classes(self) -> None:
        per_task = self.N_CLASSES_PER_TASK
        if self.SETTING not in SPLIT_SETTINGS:
            self.N_CLASSES = self.N_CLASSES or per_task
        else:
            self.N_CLASSES = sum(per_task) if isinstance(per_task, (list, tuple)) else per_task * self.N_TASKS
            if isinstance(per_task, (list, tuple)) and len(per_task) != self.N_TASKS:
                raise UserError(f"{self.NAME}: {len(per_task)} class counts for {self.N_TASKS} tasks")
        self.set_up_shape(per_task)

    def _set_up_order(self) -> None:
        """class_order[raw label] = label in the stream; also sets up the task order and joint training."""
        args, order = self.args, None
        given = [n for n in (*shape.ORDER_FLAGS, "joint") if option(args, n)]
        if given and self.SETTING not in SPLIT_SETTINGS and given != ["custom_task_order"]:
            raise UserError(
                f"--{given[0]} needs a dataset whose tasks have classes of their own; {self.NAME} is {self.SETTING}"
            )
        if len(set(given) & set(shape.ORDER_FLAGS)) > 1:
            raise UserError(f"give one of {', '.join('--' + g for g in given if g != 'joint')}, not several")
        self.task_order = shape.permutation_of(option(args, "custom_task_order"), self.N_TASKS, "--custom_task_order")
        if option(args, "permute_classes"):
            seed = option(args, "class_order_seed", option(args, "seed", 0))
            order = np.random.RandomState(seed % 2**32).permutation(self.N_CLASSES)
        elif option(args, "custom_class_order"):
            order = np.argsort(shape.permutation_of(args.custom_class_order, self.N_CLASSES, "--custom_class_order"))
        elif option(args, "class_order_list"):
            order = shape.list_order(args, self.N_CLASSES)
        elif option(args, "custom_task_order") and self.SETTING in SPLIT_SETTINGS:
            blocks = [range(*self.get_offsets(t)) for t in self.task_order]
            order = np.argsort([c for block in blocks for c in block])
            if not isinstance(self.N_CLASSES_PER_TASK, int):
                self.N_CLASSES_PER_TASK = [len(block) for block in blocks]
        if self.chosen is not None:  # the classes that --classes leaves out get label -1
            among, order = order, np.full(self.n_published, -1)
            order[self.chosen] = np.arange(self.N_CLASSES) if among is None else among
        args.class_order = order
        if option(args, "joint"):
            self.N_CLASSES_PER_TASK, self.N_TASKS = self.N_CLASSES, 1

    # what a dataset file writes

    def load(self, train: bool) -> Samples:
        """All training or all test samples, raw labels; read once per run."""
        raise UserError(f"dataset '{self.NAME}' defines neither load(train) nor get_data_loaders()")

    def task_transforms(self, task: int) -> tuple[Callable, Callable]:
        """Training and test transform of a task; a domain stream gives each task its own."""
        return self.TRANSFORM or T.ToTensor(), self.TEST_TRANSFORM or self.default_test_transform()

    # what methods and the loop use

    def samples(self, train: bool) -> Samples:
        if train not in self._samples:
            with self.as_published():
                self._samples[train] = self.load(train)
            if hasattr(self._samples[train], "keep_digests"):
                self._samples[train].keep_digests(
                    base_path(self.args) / "features" / "content", option(self.args, "features") != "verify"
                )
        return self._samples[train]

    def count(self, train: bool) -> int | None:
        """Images of all tasks; None for a file that makes its own loaders."""
        return len(self.samples(train)) if self._has_load() else None

    def n_files(self) -> int:
        """Image files of all tasks; 0 for images in memory, and for a file that makes its own loaders."""
        return sum(len(files_of(self.samples(part))) for part in (True, False)) if self._has_load() else 0

    def get_data_loaders(self) -> tuple[Loader, Loader]:
        """Move on to the next task and give its loaders."""
        return store_masked_loaders(self.samples(True), self.samples(False), self)

    def all_loaders(self, prepare: Callable | None = None) -> tuple[list[Loader], list[Loader]]:
        """Train and test loaders of every task, seen or not, from a second pass over the same stream."""
        order = getattr(self.args, "class_order", None)
        twin = type(self)(self.args, **arguments_for(type(self), self.args)).complete()
        self.args.class_order = order
        twin._samples = self._samples
        train_loaders = []
        for _ in range(twin.N_TASKS):
            train_loaders.append(twin.get_data_loaders()[0])
            if prepare is not None:
                prepare(twin)
        return train_loaders, twin.test_loaders

    def fingerprint(self) -> str | None:
        """sha256 of the content and labels of all samples; None for a stream that batches itself."""
        found = fingerprint_of([self.samples(True), self.samples(False)] if self._has_load() else self._first_samples())
        return self.shaped(found, stream_targets(self, self.samples(True)) if self._has_load() else None)

    def _first_samples(self) -> list[Samples] | None:
        """Of a file that makes its own loaders: the samples of its first task, from a second pass over the stream."""
        order = getattr(self.args, "class_order", None)
        with seeded("fingerprint"):
            twin = type(self)(self.args, **arguments_for(type(self), self.args))
            loaders = twin.get_data_loaders()
        self.args.class_order = order
        found = [getattr(getattr(loader, "dataset", None), "samples", None) for loader in loaders]
        return None if None in found else found

    def _has_load(self) -> bool:
        return type(self).load is not ContinualDataset.load

    def labels_in_use(self) -> torch.Tensor:
        """Of all training images in use, in the order of the stream's labels."""
        return self.training_labels(stream_targets(self, self.samples(True)))

    def check_samples(self) -> None:
        """What is wrong with files, labels and what the flags ask of them is reported before anything is trained."""
        if not self._has_load():
            return
        train, test = (stream_targets(self, self.samples(part)) for part in (True, False))
        train = self.training_labels(train)
        _refuse_empty(self, 0, self.N_CLASSES, train, test)
        noisy_targets(self, train, 0)
        if option(self.args, "validation"):
            validation_mask(train, self.args.validation, 0)
        files = [path for part in (True, False) for path in files_of(self.samples(part))]
        if files:
            check_images(files, base_path(self.args) / "features", not option(self.args, "non_verbose", False))

    @property
    def current_task(self) -> int:
        return len(self.test_loaders)

    def get_offsets(self, task: int | None = None) -> tuple[int, int]:
        """First and one-past-last class of a task (default: the current one)."""
        task = max(self.c_task, 0) if task is None else task
        if self.SETTING not in SPLIT_SETTINGS:
            return 0, self.N_CLASSES
        if isinstance(self.N_CLASSES_PER_TASK, int):
            return task * self.N_CLASSES_PER_TASK, (task + 1) * self.N_CLASSES_PER_TASK
        return sum(self.N_CLASSES_PER_TASK[:task]), sum(self.N_CLASSES_PER_TASK[: task + 1])

    def get_class_names(self) -> list[str]:
        """Names in the order of the stream's labels."""
        if self.class_names is None:
            names = self.CLASS_NAMES or [str(c) for c in range(self.n_published)]
            self.class_names = fix_class_names_order(list(names), self.args)
        return self.class_names

    def get_prompt_templates(self) -> list[str]:
        return list(self.TEMPLATES)

    @classmethod
    def get_transform(cls) -> Callable | None:
        return T.Compose([T.ToPILImage(), cls.TRANSFORM]) if cls.TRANSFORM is not None else None

    @classmethod
    def default_test_transform(cls) -> Callable:
        normalization = [] if cls.MEAN is None else [T.Normalize(cls.MEAN, cls.STD)]
        return T.Compose([T.ToTensor(), *normalization])

    @staticmethod
    def get_loss() -> Callable:
        return F.cross_entropy

    @classmethod
    def get_normalization_transform(cls) -> T.Normalize | None:
        return None if cls.MEAN is None else T.Normalize(cls.MEAN, cls.STD)

    @classmethod
    def get_denormalization_transform(cls) -> T.Normalize | None:
        """The inverse of the normalization, with its own `.mean` and `.std`."""
        if cls.MEAN is None:
            return None
        return T.Normalize([-m / s for m, s in zip(cls.MEAN, cls.STD, strict=True)], [1 / s for s in cls.STD])

    def get_epochs(self) -> int:
        return option(self.args, "n_epochs", self.DEFAULTS.get("n_epochs"))

    def get_iters(self) -> int | None:
        return option(self.args, "n_iters", self.DEFAULTS.get("n_iters"))

    def get_batch_size(self) -> int:
        return option(self.args, "batch_size", self.DEFAULTS.get("batch_size"))

    def get_minibatch_size(self) -> int:
        return option(self.args, "minibatch_size", self.get_batch_size())

    def get_backbone(self) -> str | None:
        return option(self.args, "backbone", self.DEFAULTS.get("backbone"))

    for _method in (get_epochs, get_iters, get_batch_size, get_backbone):
        _method.abstract_default = True  # these read DEFAULTS; an override is a default of its own
    del _method

    @classmethod
    def set_fields(cls, fields: dict) -> None:
        """Class fields from a dataset yaml; transforms are lists of torchvision names."""
        for name, value in fields.items():
            setattr(cls, name, transform_of(value, name) if name in {"TRANSFORM", "TEST_TRANSFORM"} else value)

    def probes(self) -> list:
        """What --probe measures besides this stream."""
        from datasets.utils.probes import make_probes

        return make_probes(self)

    def class_templates(self) -> list[list[str]]:
        """Prompt templates of each class; a stream over domains gives each domain its own."""
        return [self.get_prompt_templates()] * self.N_CLASSES

    def score(self, outputs: torch.Tensor, labels: torch.Tensor, extras: dict[str, torch.Tensor]) -> torch.Tensor:
        """Credit of each sample in [0, 1]: top-1; question answering overrides it; `extras`: extra fields."""
        return self.hits(outputs.argmax(dim=1), labels).float()

    @staticmethod
    def evaluate(model, dataset, last: bool = False, return_loss: bool = False):
        from utils.engine.evaluate import evaluate

        return evaluate(model, dataset, last=last, return_loss=return_loss)


def fix_class_names_order(class_names: list[str], args: Namespace) -> list[str]:
    """Names given by raw label, in the order of the stream's labels."""
    order = getattr(args, "class_order", None)
    if order is None:
        return class_names
    return [class_names[raw] for raw in np.argsort(np.asarray(order)) if order[raw] >= 0]


def stream_targets(setting: ContinualDataset, samples: Samples) -> torch.Tensor:
    """Labels in the order of the stream, checked against the number of classes."""
    targets = samples.targets
    if len(targets) and not (0 <= int(targets.min()) and int(targets.max()) < setting.n_published):
        raise UserError(
            f"{setting.NAME}: labels run from {int(targets.min())} to {int(targets.max())}, "
            f"but there are {setting.n_published} classes; fix the labels or the class count"
        )
    order = getattr(setting.args, "class_order", None)
    return targets if order is None else torch.as_tensor(np.asarray(order))[targets]


def store_masked_loaders(train_dataset, test_dataset, setting: ContinualDataset) -> tuple[Loader, Loader]:
    """Move `setting` to its next task: split the data, set its train loader, append its test loader."""
    train, test, args = as_samples(train_dataset), as_samples(test_dataset), setting.args
    setting.c_task += 1
    task = setting.c_task
    if task >= setting.N_TASKS:
        raise UserError(f"{setting.NAME} has {setting.N_TASKS} tasks, there is no task {task}")
    seed = option(args, "seed", 0)
    train_targets, test_targets = stream_targets(setting, train), stream_targets(setting, test)
    kept, blurred = setting.kept(train_targets)
    held = torch.zeros(len(train_targets), dtype=torch.bool)
    if option(args, "validation"):
        held[kept] = validation_mask(train_targets[kept], args.validation, seed)
    noisy = noisy_targets(setting, train_targets, seed)
    in_train = ~held & kept & (blurred == task if blurred is not None else task_mask(setting, train, train_targets))
    in_test = task_mask(setting, test, test_targets)
    _refuse_empty(setting, *setting.get_offsets(task), train_targets[in_train], test_targets[in_test])
    train_transform, test_transform = setting.task_transforms(setting.task_order[task])
    split = make_split(train, in_train, noisy, train_transform, True)
    if option(args, "noise_rate"):
        split.add_extra_return_field("true_labels", train_targets[in_train])
    drop_labels(setting, split, task, seed)
    tests = make_split(test, in_test, test_targets, test_transform, False)
    key, batch_size, workers = (seed, setting.NAME, task), setting.get_batch_size(), option(args, "num_workers", 0)
    if option(args, "validation"):
        complete = option(args, "validation_mode", "current") == "complete"
        mask = held & (
            train_targets < setting.get_offsets(task)[1] if complete else task_mask(setting, train, train_targets)
        )
        setting.final_test_loaders.append(Loader(tests, batch_size, key, False, False, workers))
        tests = make_split(train, mask, train_targets, test_transform, False)
    use_caches(setting, [split, tests, *(loader.dataset for loader in setting.final_test_loaders)])
    setting.train_loader = Loader(split, batch_size, key, True, option(args, "drop_last", False), workers)
    if len(split) and not len(setting.train_loader):
        raise UserError(
            f"--drop_last 1 leaves nothing of task {task + 1}: it has {len(split)} images, fewer than "
            f"--batch_size {batch_size}; lower that or leave --drop_last out"
        )
    setting.test_loaders.append(Loader(tests, batch_size, (*key, "test"), False, False, workers))
    return setting.train_loader, setting.test_loaders[-1]


def task_mask(setting: ContinualDataset, samples: Samples, targets: torch.Tensor) -> torch.Tensor:
    """Which samples belong to the current task: by `task_ids` where the source has them, else by class range."""
    ids = getattr(getattr(samples, "dataset", samples), "task_ids", None)
    if ids is not None:
        return torch.as_tensor(ids) == setting.task_order[setting.c_task]
    first, end = setting.get_offsets(setting.c_task)
    if setting._sizes:  # blurred tasks: each has classes of its own all the same, and their test images
        first, end = (sum(setting._sizes[: setting.c_task + more]) for more in (0, 1))
    return (targets >= first) & (targets < end)


def make_split(samples: Samples, mask: torch.Tensor, targets: torch.Tensor, transform, train: bool) -> Split:
    rows = torch.nonzero(mask).flatten()
    return Split(samples, rows, targets[rows].clone(), transform, train)


def _refuse_empty(
    setting: ContinualDataset, first: int, end: int, train_targets: torch.Tensor, test_targets: torch.Tensor
) -> None:
    if setting.SETTING not in SPLIT_SETTINGS:
        return
    for kind, targets in (("training", train_targets), ("test", test_targets)):
        empty = [c for c in range(first, end) if not bool((targets == c).any())]
        if empty:
            names = ", ".join(setting.get_class_names()[c] for c in empty[:5])
            raise UserError(f"{setting.NAME}: no {kind} image of class {names}; add images or drop the class")


MammothDatasetWrapper = Split

__all__ = ["ContinualDataset", "MammothDatasetWrapper", "fix_class_names_order", "store_masked_loaders"]
