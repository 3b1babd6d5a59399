"""What happens around a run: checks, search for an earlier run, seed and device, record, warnings."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import socket
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from utils import free_memory, ranks, to_parsable_obj
from utils.cli import plugins, protocols, registry
from utils.conf import get_device, remember
from utils.engine import checkpoint, provenance, report, sinks, unchanged
from utils.engine import record as results
from utils.engine.foreign_weights import fill_weights, read_mammoth
from utils.engine.run import MID_TASK, TASK_END
from utils.errors import UserError
from utils.randomness import set_random_seed
from utils.settings import SPLIT_SETTINGS, option

if TYPE_CHECKING:
    from datasets.utils.continual_dataset import ContinualDataset
    from models.utils.continual_model import ContinualModel


def check(args: Namespace, model_class: type[ContinualModel], dataset_class: type[ContinualDataset]) -> None:
    """Check the combination of flags, model and dataset; all errors are reported at once."""
    problems = []
    setting, fits = dataset_class.SETTING, set(getattr(model_class, "COMPATIBILITY", []))
    if option(args, "blurry"):
        setting = "general-continual"  # a task may show any class
    if not fits:
        problems.append(
            f'model {args.model} does not declare COMPATIBILITY; add it to its class, for example ["{setting}"]'
        )
    elif setting not in (
        runs_in := fits | ({"class-il"} if "task-il" in fits else set())
    ):  # scored among each task's own classes
        good = [e.name for e in registry.index("dataset").values() if e.setting in runs_in]
        problems.append(
            f"model {args.model} works with {', '.join(sorted(fits))}; {args.dataset} is {setting}"
            f"{' with --blurry' if option(args, 'blurry') else ''}. "
            f"Datasets that fit: {', '.join(sorted(good)) or 'none here'}"
        )
    if option(args, "eval_future") and not hasattr(model_class, "future_forward"):
        problems.append(f"--eval_future 1: model {args.model} cannot name classes it has not seen; leave the flag out")
    if option(args, "eval_future") and (option(args, "joint") or setting not in SPLIT_SETTINGS):
        problems.append("--eval_future 1 needs tasks with classes of their own, and no --joint")
    problems += sparse_evaluation(args)
    reason = getattr(model_class, "ONE_RANK", None)
    if ranks.size() > 1 and reason:
        problems.append(f"--distributed ddp: model {args.model} {reason}; run it in one process")
    if ranks.size() > 1 and option(args, "features") == "verify":
        problems.append("--features verify: the check is for one process; leave --distributed out for it")
    if args.fitting_mode == "iters" and not args.n_iters:
        problems.append("--fitting_mode iters needs --n_iters")
    if args.fitting_mode == "early_stopping" and not option(args, "validation"):
        problems.append("--fitting_mode early_stopping needs --validation, the fraction of held-out images")
    if args.n_iters and args.fitting_mode != "iters":
        problems.append("--n_iters needs --fitting_mode iters")
    if args.lr_scheduler == "multisteplr" and not args.lr_milestones:
        problems.append("--lr_scheduler multisteplr needs --lr_milestones, for example 35 45")
    if max(args.label_perc, args.label_perc_by_class) < 1:
        problems.append("use --label_perc_by_task or --label_perc_by_class, not both")
    if args.custom_class_order is not None and args.class_order_seed is not None:
        problems.append("--class_order_seed has no effect on --custom_class_order; use one of them")
    problems += sinks.problems(args)
    if problems:
        raise UserError("\n".join(problems))


def sparse_evaluation(args: Namespace) -> list[str]:
    """What is wrong with --eval_every and --eval_final."""
    sparse = [f"--{flag}" for flag in ("eval_every", "eval_final") if option(args, flag)]
    needs = [f"--{flag}" for flag in ("probe", "enable_other_metrics") if option(args, flag)]
    problems = [f"{flag} measures after each task, so it does not go with {sparse[0]}" for flag in needs if sparse]
    if len(sparse) > 1:
        problems.append("--eval_final 1 leaves nothing for --eval_every to choose; use one of them")
    return problems


def check_class_sizes(args: Namespace, model_class: type, dataset: ContinualDataset) -> None:
    """Refuse classes with fewer training images than the method needs; in domain streams each task has all classes."""
    least = getattr(model_class, "LEAST_IMAGES", 1)
    if dataset.count(True) is None or (least < 2 and not getattr(model_class, "EVERY_CLASS", False)):
        return
    samples = dataset.samples(True)
    labels, ids = dataset.labels_in_use(), getattr(samples, "task_ids", None)
    if dataset.SETTING not in SPLIT_SETTINGS and ids is not None:
        labels = labels[torch.as_tensor(ids) == dataset.task_order[0]]
    counts = torch.bincount(labels, minlength=dataset.N_CLASSES)
    few = int((counts < least).sum())
    if few:
        where = "" if dataset.SETTING in SPLIT_SETTINGS else " in the first task"
        raise UserError(
            f"model {args.model} needs {least} training image{'s' * (least > 1)} of every class{where}; {few} of the "
            f"{dataset.N_CLASSES} classes of {args.dataset} have fewer: choose another stream or method"
        )


def check_against_dataset(args: Namespace, dataset: ContinualDataset) -> None:
    """Check flags whose range depends on the number of tasks, and fill in what follows from the dataset."""
    first, last = option(args, "start_from", 0), option(args, "stop_after", dataset.N_TASKS - 1)
    for name, value in (("start_from", first), ("stop_after", last)):
        if value >= dataset.N_TASKS:
            raise UserError(f"--{name} {value}: {args.dataset} has tasks 0 to {dataset.N_TASKS - 1}")
    if first > last:
        raise UserError(f"--start_from {first} is after --stop_after {last}")
    args.num_classes = dataset.N_CLASSES
    args.backbone = option(args, "backbone", dataset.get_backbone())
    n_files = dataset.n_files()
    if option(args, "image_cache") and not n_files:
        raise UserError(f"--image_cache: {args.dataset} reads no image files that could be kept; leave it out")
    args.num_workers = option(args, "num_workers", free_memory.readers_for(n_files))
    free_memory.refuse_many_readers(args)


def fill_in(args: Namespace) -> dict:
    """Fill in derived values; returns the arguments as requested, before anything is drawn or detected."""
    args.n_epochs = option(args, "n_epochs", 1)
    if args.batch_size is None:
        raise UserError(f"--batch_size is missing: dataset {args.dataset} does not declare one")
    if hasattr(args, "minibatch_size") and args.minibatch_size is None:
        args.minibatch_size = args.batch_size
    args.nowand = 1
    requested = dict(vars(args))
    ranks.compare(
        {"arguments": results.config_hash(requested), "code": code_digest()},
        "start all ranks with one command, from one checkout",
    )
    return requested


def find_earlier(args: Namespace, requested: dict) -> results.RunRecord | None:
    """With --resume: the newest run of the same configuration, finished or not."""
    if not args.resume:
        return None
    found: results.RunRecord | None = ranks.from_first(lambda: find_unfinished(args, requested))
    return found


def find_unfinished(args: Namespace, requested: dict) -> results.RunRecord | None:
    """The newest run of the same configuration that no other process writes to."""
    found = results.find_run(args.results_path, args.dataset, args.model, results.config_hash(requested))
    if found is not None and found.status == "running":
        raise UserError(f"{found.folder} is being written by another process: wait for it, or leave out --resume")
    if found is not None and not found.rows():
        return None  # killed before writing its first line
    return found


def show_finished(found: results.RunRecord) -> dict[str, float]:
    """Print the result of a finished run."""
    summary: dict[str, float] | None = found.rows()[-1].get("summary")
    if summary is None:
        raise UserError(f"{found.path} says done but does not have a summary; restore the file or delete its folder")
    print(f"already finished: {found.folder}")
    report.print_summary(summary, folder=found.folder, args=Namespace(**(found.rows()[0].get("args") or {})))
    return summary


def set_up(args: Namespace, found: results.RunRecord | None) -> None:
    """Seed and device; without --seed it is drawn, or taken from the continued run."""
    if args.seed is None:
        drawn = random.SystemRandom().randrange(2**31)
        args.seed = results.seed_of(found) if found else ranks.from_first(lambda: drawn)
    if not args.disable_log:
        results.check_writable(args.results_path)
    if args.savecheck and args.checkpoint_path:
        results.check_writable(args.checkpoint_path, "--checkpoint_path")
    remember(Namespace(**vars(args) | {"device": None}))
    args.device = str(get_device(args.device))
    if preset_of(args):
        print(protocols.pinned(args))
    remember(args)
    set_random_seed(args.seed)


def open_record(
    args: Namespace, requested: dict, found: results.RunRecord | None, first_line: dict, model: ContinualModel
) -> results.RunRecord | None:
    """The record to write to: that of the continued run, or a new one with its first line. Rank 0 has it."""
    if args.disable_log or ranks.rank():
        return None
    if found is not None:
        record = found
        reopen(record, model)
    else:
        record = results.open_run(args.results_path, args.dataset, args.model, requested)
        record.start(first_line)
        provenance.keep_patch(record.folder)
    if sinks.chosen(args):
        record.sinks = sinks.Sinks(record.folder, args, record.rows())
    return record


def needs_first_line(args: Namespace, found: results.RunRecord | None) -> bool:
    """Whether the facts of a run are asked for: by its record, or by the other ranks."""
    return not args.disable_log or found is not None or ranks.size() > 1


def compare_data(first_line: dict) -> None:
    """Refuse ranks that see other images, names or weights."""
    seen = {unchanged.WORDS[key]: json.dumps(first_line.get(key), sort_keys=True) for key in unchanged.WORDS}
    ranks.compare(
        {word: hashlib.sha256(text.encode()).hexdigest() for word, text in seen.items()},
        "give all of them the same files",
    )


def code_digest() -> str:
    """sha256 of our source files."""
    digest = hashlib.sha256()
    for path in sorted(
        p for room in ("backbone", "datasets", "models", "utils") for p in (registry.ROOT / room).rglob("*.py")
    ):
        digest.update(str(path.relative_to(registry.ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def start_line(
    args: Namespace, requested: dict, dataset: ContinualDataset, model: ContinualModel, argv: list[str] | None = None
) -> dict:
    """The first line of the record: what was requested and the environment."""
    versions = {
        name: getattr(sys.modules.get(name), "__version__", None) for name in ("torch", "torchvision", "timm", "numpy")
    }
    order = getattr(args, "class_order", None)
    return {
        **provenance.facts(sys.argv[1:] if argv is None else argv, args, model=model, dataset=dataset),
        "requested": to_parsable_obj(requested),
        "args": to_parsable_obj(args),
        "versions": versions,
        "python": sys.version.split()[0],
        "host": socket.gethostname(),
        "device": str(model.device),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "data": to_parsable_obj(dataset.facts()) if hasattr(dataset, "facts") else {},
        "class_order": None if order is None else [int(c) for c in order],
        "threads": torch.get_num_threads(),
        "ranks": ranks.size(),
        "plugins": plugins.loaded(),
        "preset": preset_of(args),
        **unchanged.facts(args, dataset, model),
    }


def preset_of(args: Namespace) -> dict | None:
    """The protocol of --protocol: its name, its hash, and what the command changes."""
    if not option(args, "protocol_sha256"):
        return None
    return {"name": args.protocol, "sha256": args.protocol_sha256, "deviations": args.protocol_deviations}


def git_commit() -> str | None:
    """The commit of this checkout, with a + if files were modified or are not tracked."""
    return provenance.commit_and_changes()[0]


def reopen(record: results.RunRecord, model: ContinualModel) -> None:
    """Prepare an unfinished record to be continued: drop what was written after its checkpoint."""
    saved = [p for p in (record.folder / "ckpt" / n for n in (MID_TASK, TASK_END)) if p.exists()]
    known = [checkpoint.load_run(p, model=model.NAME)["record_bytes"] for p in saved]
    first_line = record.path.read_bytes().find(b"\n") + 1
    record.truncate(max(known, default=first_line))
    print(f"continuing {record.folder}")


@contextlib.contextmanager
def warnings_told() -> Iterator[Callable[[results.RunRecord | None], None]]:
    """Python warnings of a run: one line on stderr, each text once. The block gets a function to attach the record,
    once there is one: it holds all of them."""
    told: list[str] = []
    records: list[results.RunRecord] = []

    def show(message: Warning | str, *place: object, **more: object) -> None:
        text = " ".join(str(message).split())
        if text not in told:
            told.append(text)
            print(f"warning: {text}", file=sys.stderr)
            for record in records:
                record.warning(text)

    def attach(record: results.RunRecord | None) -> None:
        if record is not None:
            records.append(record)
            known = {row.get("text") for row in record.rows()}
            for text in told:
                if text not in known:
                    record.warning(text)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield attach


def load_foreign(model: ContinualModel, args: Namespace, path: Path) -> None:
    """A checkpoint from Mammoth's safe mode: weights and memory; counters, optimizer and the rest start over."""
    weights, memory = read_mammoth(path)
    unused = fill_weights(model, weights, path)
    if unused:
        warnings.warn(
            f"{path} contains {len(unused)} tensors that model {model.NAME} does not use: {', '.join(unused[:3])}"
        )
    if memory and hasattr(model, "buffer"):
        model.load_buffer(memory)
        warnings.warn(
            f"{path} does not say how many samples its memory has seen; only the {len(model.buffer)} "
            "stored ones are counted"
        )
    model._current_task = option(args, "start_from", 0)
    print(f"{path}: loaded {len(weights) - len(unused)} tensors; training starts with task {model._current_task + 1}")


def load_checkpoint(model: ContinualModel, args: Namespace) -> None:
    """--loadcheck: our checkpoints give weights and all method state; Mammoth's .pt what it contains."""
    if not option(args, "loadcheck"):
        return
    path = Path(args.loadcheck)
    if not path.is_file():
        raise UserError(f"--loadcheck {path}: no such file")
    if path.suffix != ".safetensors":
        load_foreign(model, args, path)
        return
    state = checkpoint.load_run(path, model=model.NAME, device=model.device)
    checkpoint.restore(model, state["model"])
    next_task = state["position"]["task"] + 1
    if args.start_from is None and not args.inference_only and state["position"]["phase"] == "done":
        args.start_from = next_task
        checkpoint.set_rng_state(state["rng"])  # the remaining tasks are those of the run that wrote it
        print(f"{path} has finished {next_task} tasks: continuing with task {next_task + 1}")
