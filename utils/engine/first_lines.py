"""The first lines of a run: what is trained on what, where it is written, and how it is continued."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from utils.engine.accounting import parameter_counts
from utils.engine.record import RunRecord
from utils.settings import SPLIT_SETTINGS, option

if TYPE_CHECKING:
    from datasets.utils.continual_dataset import ContinualDataset
    from models.utils.continual_model import ContinualModel


def first_lines(
    args: Namespace, dataset: ContinualDataset, model: ContinualModel, record: RunRecord | None
) -> list[str]:
    """Method and stream; network, device and seed; folder and what resumes; a note if an upper bound trains less."""
    return [
        f"{args.model} on {args.dataset}: {stream_line(dataset)}",
        f"network: {network_line(args, model)}; device {model.device}; seed {args.seed}",
        folder_line(args, record),
        *note_of_fewer_steps(args),
    ]


def stream_line(dataset: ContinualDataset) -> str:
    spans = [dataset.get_offsets(task) for task in range(dataset.N_TASKS)]
    sizes = sorted({end - first for first, end in spans})
    each = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    what = "answers" if dataset.VQA else "classes"
    tasks = f"{dataset.N_TASKS} task{'s' * (dataset.N_TASKS > 1)}"
    shared = "" if dataset.SETTING in SPLIT_SETTINGS else "the same "
    images = dataset.count(True), dataset.count(False)
    counted = "" if None in images else f", {images[0]:,} training and {images[1]:,} test images"
    return f"{dataset.SETTING}, {tasks} of {shared}{each} {what}{counted}"


def network_line(args: Namespace, model: ContinualModel) -> str:
    counts = parameter_counts(model)
    weights = option(args, "clip_backbone")
    name = f"CLIP {weights}" if getattr(model, "BUILDS_OWN_NET", False) and weights else args.backbone
    name = name or type(model.net).__name__
    return f"{name}, {short(counts['total'])} parameters, {short(counts['trainable'])} of them trained at the start"


def short(count: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def folder_line(args: Namespace, record: RunRecord | None) -> str:
    if record is None:
        return "record: none (--disable_log 1)"
    how = "add --resume auto to the command to continue it" if args.autosave else "--autosave 0: it cannot be continued"
    return f"record: {record.folder} ({how})"


def note_of_fewer_steps(args: Namespace) -> list[str]:
    """Joint training is an upper bound only of methods that take no more steps."""
    if not option(args, "joint") or args.fitting_mode != "iters":
        return []
    return [
        f"note: --joint 1 takes {args.n_iters} steps in all, a method on the tasks takes as many in each: for an upper "
        "bound multiply --n_iters by the number of tasks"
    ]
