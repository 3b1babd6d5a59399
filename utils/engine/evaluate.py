"""Scores on test sets: one pass over each, every score from the same logits."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from utils.errors import UserError
from utils.pair import Inputs
from utils.passes import eval_batch_size
from utils.randomness import generator
from utils.settings import SPLIT_SETTINGS, UNMASKED, option

if TYPE_CHECKING:
    from datasets.utils.continual_dataset import ContinualDataset
    from models.utils.continual_model import ContinualModel

FEATURE_ROWS = 16384  # rows of cached features scored at once
MIXED_ROWS = 256  # the same for mixed test sets, so that there are several batches


@dataclass
class TaskScores:
    """Sums over one test set; `percent` turns one into a score."""

    count: int = 0
    class_il: float = 0.0  # among the names seen so far
    task_il: float = 0.0  # among the task's own names; for unseen tasks by future_forward
    all_names: float = float("nan")  # among all names of the dataset
    unseen_names: float = float("nan")  # among the names not seen yet
    loss: float = 0.0
    variants: dict[str, Any] = field(default_factory=dict)  # among all names, scored in other ways
    parts: dict[str, list] = field(default_factory=dict)  # per sample: confidence, correct, prediction, label

    def percent(self, name: str) -> float:
        return 100.0 * getattr(self, name) / self.count if self.count else float("nan")

    def exact_match(self) -> float:
        """Percent of predictions that are a question's first answer (or its label, if answers are not given)."""
        return (
            100.0 * float((self.flat("prediction") == self.flat("first")).float().mean())
            if self.parts
            else float("nan")
        )

    def by_evidence(self, dataset: ContinualDataset, split: Any) -> dict[str, float]:
        """Percent correct among the samples of each kind of evidence, where a stream says which a sample has."""
        kinds = getattr(getattr(split, "samples", None), "evidence", None)
        correct = self.flat("correct").float()
        if kinds is None or not len(correct):
            return {}
        own = kinds[split.rows[: len(correct)]]  # --debug_mode stops early
        return {name: 100.0 * float(correct[own == i].mean()) for i, name in enumerate(dataset.EVIDENCE)}

    def flat(self, name: str) -> torch.Tensor:
        return torch.cat(self.parts[name]) if self.parts.get(name) else torch.empty(0)


def only_columns(outputs: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """The given columns, all others -inf; the argument is not modified."""
    masked = torch.full_like(outputs, -torch.inf)
    masked[:, start:end] = outputs[:, start:end]
    return masked


def mask_classes(outputs: torch.Tensor, dataset: ContinualDataset, k: int) -> torch.Tensor:
    """Logits of task k's classes, all others -inf; the argument is not modified."""
    return only_columns(outputs, *dataset.get_offsets(k))


def batches_of(model: ContinualModel, loader: Any, args: Namespace) -> Iterator[tuple]:
    """Test batches: features of a frozen encoder if the model has one, else images in the largest batches that fit."""
    limit = model.get_debug_iters() if option(args, "debug_mode") else None
    features = model.cached_inputs(loader) if hasattr(loader, "with_batch_size") else None
    if features is not None:
        split = loader.dataset
        columns = [split.targets, *(getattr(split, name) for name in split.extra_return_fields)]
        yield from zip(*(column.split(FEATURE_ROWS) for column in (features, *columns)), strict=True)
        return
    if hasattr(loader, "with_batch_size") and limit is None:
        loader = loader.with_batch_size(eval_batch_size(loader, args))
    for number, batch in enumerate(loader):
        if limit is not None and number >= limit:
            return
        yield batch


def logits_of(model: ContinualModel, inputs: Inputs, task: int) -> torch.Tensor:
    """The model's logits; the task number is passed only to models whose only setting is task-IL."""
    if UNMASKED & set(model.COMPATIBILITY):
        outputs: torch.Tensor = model(inputs)
    else:
        outputs = model(inputs, torch.full((len(inputs),), task, device=inputs.device))
    return outputs


@torch.no_grad()
def score_task(
    model: ContinualModel, dataset: ContinualDataset, loader: Any, task: int, future: bool = False
) -> TaskScores:
    """All scores of one test set; with `future`, also among all names and among unseen names."""
    scores, split = TaskScores(), dataset.SETTING in SPLIT_SETTINGS
    seen_end = dataset.get_offsets(max(dataset.c_task, 0))[1]
    is_seen = task <= max(dataset.c_task, 0)
    fields = getattr(getattr(loader, "dataset", None), "extra_return_fields", [])
    total = torch.zeros(5, dtype=torch.float64, device=model.device)
    for batch in batches_of(model, loader, dataset.args):
        inputs, labels = batch[0].to(model.device), batch[1].to(model.device)
        extras = {name: value.to(model.device) for name, value in zip(fields, batch[2:], strict=False)}
        scores.count += len(labels)
        if future:
            outputs = model.future_forward(inputs).float()
            total[2] += dataset.score(outputs, labels, extras).sum()
            for name, other in model.future_variants(inputs).items():
                credit = dataset.score(other.float(), labels, extras).sum()
                scores.variants[name] = scores.variants.get(name, 0.0) + credit.double()
            if not is_seen:
                total[3] += dataset.score(only_columns(outputs, seen_end, outputs.shape[1]), labels, extras).sum()
                total[1] += dataset.score(mask_classes(outputs, dataset, task), labels, extras).sum()
        if not is_seen:
            continue
        outputs = logits_of(model, inputs, task).float()
        named = outputs[:, :seen_end]
        credit = dataset.score(named, labels, extras)
        total[0] += credit.sum()
        if split:
            total[1] += dataset.score(mask_classes(outputs, dataset, task), labels, extras).sum()
        if labels.dim() == 1:
            total[4] += F.cross_entropy(named, labels.long(), reduction="sum")
        confidence, prediction = named.softmax(1).max(1)
        for name, value in (
            ("confidence", confidence),
            ("correct", credit),
            ("prediction", prediction),
            ("label", labels),
            ("first", extras.get("first", labels)),
        ):
            scores.parts.setdefault(name, []).append(value.cpu())
    scores.class_il, scores.task_il, all_names, unseen, scores.loss = total.tolist()
    if not UNMASKED & set(model.COMPATIBILITY):
        scores.class_il = float("nan")  # given the task number, it cannot predict without it
    scores.variants = {name: 100.0 * float(value) / max(scores.count, 1) for name, value in scores.variants.items()}
    if future:
        scores.all_names = all_names
        scores.unseen_names = float("nan") if is_seen else unseen
    return scores


def mixed_batches(model: ContinualModel, loaders: dict[int, Any], args: Namespace) -> Iterator[tuple]:
    """(inputs, labels) of several test sets shuffled together: rows of a frozen tower, each computed from one image
    alone, else images."""
    first, *others = loaders.values()
    if not hasattr(first, "joined"):
        raise UserError(
            "--mixed_batches: this dataset makes its own data loaders, which cannot be mixed; leave the flag out"
        )
    found: list[Any] = (
        [model.cached_inputs(loader) for loader in loaders.values()]
        if getattr(model, "FROZEN_TOWER", False)
        else [None]
    )
    if found[0] is None:
        mixed = first.joined(others)
        mixed.shuffle = True
        yield from (batch[:2] for batch in mixed.with_batch_size(eval_batch_size(mixed, args)))
        return
    rows, labels = torch.cat(found), torch.cat([loader.dataset.targets for loader in loaders.values()])
    order = torch.randperm(len(labels), generator=generator("mixed batches", option(args, "seed", 0)))
    for part in order.split(option(args, "eval_batch_size", MIXED_ROWS)):
        yield rows[part.to(rows.device)], labels[part]


@torch.no_grad()
def score_mixed(
    model: ContinualModel, dataset: ContinualDataset, loaders: dict[int, Any], future: bool = False
) -> dict[int, TaskScores]:
    """`class_il`, `task_il` and `all_names` of test sets 0, 1, .. from batches that mix their images at random.

    Statistics of a whole test set are not used: a method whose output depends on the rest of the batch scores
    differently here.
    """
    seen_end = dataset.get_offsets(max(dataset.c_task, 0))[1]
    starts, ends = torch.tensor([dataset.get_offsets(t) for t in loaders], device=model.device).T.contiguous()
    total = torch.zeros(
        len(loaders), 4, dtype=torch.float64, device=model.device
    )  # count, class_il, task_il, all_names
    limit = model.get_debug_iters() if option(dataset.args, "debug_mode") else None
    for number, (inputs, labels) in enumerate(mixed_batches(model, loaders, dataset.args)):
        if number == limit:
            break
        inputs, labels = inputs.to(model.device), labels.to(model.device)
        task = torch.searchsorted(ends, labels, right=True)  # (B,)
        column, credit = torch.arange(dataset.N_CLASSES, device=model.device), torch.zeros_like(total[task])
        own = (column >= starts[task, None]) & (column < ends[task, None])  # (B, C) the names of the image's dataset
        unmasked = UNMASKED & set(model.COMPATIBILITY)
        outputs = (model(inputs) if unmasked else model(inputs, task)).float()
        masked = outputs.masked_fill(~own[:, : outputs.shape[1]], -torch.inf)
        credit[:, 0] = 1
        credit[:, 1] = dataset.score(outputs[:, :seen_end], labels, {})
        credit[:, 2] = dataset.score(masked, labels, {})
        if future:
            outputs = model.future_forward(inputs).float()
            ahead = dataset.score(outputs.masked_fill(~own, -torch.inf), labels, {}).double()
            credit[:, 2] = torch.where(labels < seen_end, credit[:, 2], ahead)
            credit[:, 3] = dataset.score(outputs, labels, {})
        total.index_add_(0, task, credit)
    rows = total.tolist()
    return {
        t: TaskScores(round(row[0]), row[1], row[2], row[3] if future else float("nan"))
        for t, row in zip(loaders, rows, strict=True)
    }


def evaluate_mixed(
    model: ContinualModel, dataset: ContinualDataset, loaders: dict[int, Any], future: bool = False
) -> dict[int, TaskScores]:
    """`score_mixed` with the model in evaluation mode."""
    training = model.training
    model.eval()
    try:
        return score_mixed(model, dataset, loaders, future)
    finally:
        model.train(training)


def evaluate_tasks(
    model: ContinualModel, dataset: ContinualDataset, loaders: dict[int, Any], future: bool = False
) -> dict[int, TaskScores]:
    """Scores of several test sets, by task number."""
    training = model.training
    model.eval()
    try:
        return {task: score_task(model, dataset, loader, task, future) for task, loader in loaders.items()}
    finally:
        model.train(training)


def evaluate(model: ContinualModel, dataset: ContinualDataset, last: bool = False, return_loss: bool = False) -> tuple:
    """Mammoth's form: (class-IL percentages, task-IL percentages[, mean loss]) of the tasks seen so far."""
    first = len(dataset.test_loaders) - 1 if last else 0
    found = list(evaluate_tasks(model, dataset, dict(list(enumerate(dataset.test_loaders))[first:])).values())
    class_il = [s.percent("class_il") if UNMASKED & set(model.COMPATIBILITY) else 0.0 for s in found]
    task_il = [s.percent("task_il") if dataset.SETTING in SPLIT_SETTINGS else 0.0 for s in found]
    if return_loss:
        return class_il, task_il, sum(s.loss for s in found) / max(sum(s.count for s in found), 1)
    return class_il, task_il
