"""The inputs of a run (images, labels, names, prompts, weights, protocol), and whether a resumed run has the same."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils.content import file_digest
from utils.engine.record import VOLATILE, RunRecord
from utils.errors import UserError
from utils.settings import option

if TYPE_CHECKING:
    from datasets.utils.continual_dataset import ContinualDataset
    from models.utils.continual_model import ContinualModel

WORDS = {
    "dataset_fingerprint": "images or labels",
    "class_names": "class names",
    "templates_sha256": "prompt templates",
    "class_order": "class order",
    "protocol": "protocol",
    "weights_sha256": "weights",
    "initial_sha256": "initial weights",
    "reference_sha256": "reference images or texts",
    "files_sha256": "files named by flags",
    "data": "dataset facts",
}
BASED_ON_CONTENT = 2  # "facts_version" of records whose fingerprint depends on the files' content


def facts(args: Namespace, dataset: ContinualDataset, model: ContinualModel) -> dict:
    """For the first line of a record: what `check` compares."""
    per_task = dataset.N_CLASSES_PER_TASK
    protocol = {
        "setting": dataset.SETTING,
        "n_tasks": dataset.N_TASKS,
        "n_classes": dataset.N_CLASSES,
        "classes_per_task": [int(n) for n in per_task] if isinstance(per_task, (list, tuple)) else per_task,
        "task_order": [int(t) for t in dataset.task_order],
        "size": list(dataset.SIZE or ()),
    }
    return {
        "facts_version": BASED_ON_CONTENT,
        "dataset_fingerprint": dataset.fingerprint(),
        "protocol": protocol,
        "class_names": _if_any(lambda: [str(name) for name in dataset.get_class_names()]),
        "templates_sha256": _if_any(lambda: _sha256(dataset.class_templates())),
        "weights_sha256": getattr(model, "weights_sha256", None),
        "initial_sha256": state_digest(model),
        "reference_sha256": model.reference_sha256(),
        "files_sha256": named_files(args),
    }


def _if_any(make: Callable) -> Any:
    """None if an external stream does not provide it: a method that needs names requests them itself, then fails."""
    try:
        return make()
    except Exception:  # from any library that the file uses
        return None


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def state_digest(model: torch.nn.Module) -> str:
    """sha256 of all initial parameters and buffers, drawn from the seed or read from files. Tensors that
    are plain attributes are skipped: methods allocate some without filling them."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def named_files(args: Namespace) -> dict[str, str]:
    """flag -> sha256 of the file that its value names: weights, lists, a checkpoint to start from."""
    found = {}
    for flag, value in sorted(vars(args).items()):
        if isinstance(value, (str, os.PathLike)) and flag not in VOLATILE and value:
            try:
                path = Path(value).expanduser()
                if path.is_file():
                    found[flag] = file_digest(path).hex()
            except (OSError, ValueError, RuntimeError):
                continue  # not a path, or unreadable: code that needs it reports that
    return found


def check(found: RunRecord, now: dict, args: Namespace) -> None:
    """Refuse to continue a run with different inputs; --resume force continues with a warning."""
    before = found.rows()[0]
    if before.get("facts_version") != BASED_ON_CONTENT:
        warnings.warn(
            f"{found.folder} was started by an earlier version, which did not record checksums of its "
            "images: they are not compared"
        )
        return
    noted = [key for key in WORDS if key in before]  # an earlier version noted fewer facts
    told = [_difference(key, before[key], now.get(key)) for key in noted if not _same(before[key], now.get(key))]
    if not told:
        return
    text = f"{found.folder} was run on different inputs: {'; '.join(told)}"
    if option(args, "resume") != "force":
        raise UserError(f"{text}. Restore them, leave out --resume to start over, or use --resume force")
    warnings.warn(text)


def _same(before: Any, now: Any) -> bool:
    """Equal as JSON of a record, in which a non-finite number is null."""
    return json.dumps(before, sort_keys=True) == json.dumps(now, sort_keys=True).replace("NaN", "null")


def _difference(key: str, before: Any, now: Any) -> str:
    """One fact that differs, in a few words."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
        return f"{WORDS[key]} ({', '.join(f'{k} {_short(before.get(k))} -> {_short(now.get(k))}' for k in names[:3])})"
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        at = next(k for k, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
        return f"{WORDS[key]} (number {at}: {_short(before[at])} -> {_short(now[at])})"
    return f"{WORDS[key]} ({_short(before)} -> {_short(now)})"


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 24 else f"{text[:12]}..."
