"""Writes docs/metrics.md: every key of a record with its name, formula, range of tasks and paper.

The keys are those that the code writes: the functions of utils/engine/metrics.py are replaced by ones that note which
matrix they are given, then report.summary runs on made-up streams of each kind. Formulas, tasks and papers are read
from the docstrings of metrics.py. The script stops at a key that it does not describe.
"""

import contextlib
import inspect
import itertools
import re
import sys
from argparse import Namespace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.tiny_world.streams import MM_EVIDENCE as EVIDENCE
from utils.engine import launch, metrics, report
from utils.engine.accounting import Stopwatch

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "metrics.md"

# what no function of metrics.py computes: key -> meaning
START = {
    "type": "`start`",
    "schema": "version of this format",
    "config_hash": "sha256 of the arguments that change numbers; `--resume auto` looks for it",
    "argv": "the arguments of the command line, or of the call from Python",
    "command": "what to paste for the same numbers: the arguments, and the seed if it was drawn",
    "requested": "arguments before defaults were resolved and the seed was drawn",
    "args": "effective arguments, the drawn seed included",
    "git_commit": "commit of the checkout, with + if files differ from it or are not tracked",
    "git_changes": "these files, as `git status --porcelain` names them",
    "patch_sha256": "of their diff, which is changes.patch in the run's folder; null if there is none",
    "code": "file and sha256 of the method's and the data set's own source",
    "packages": "name==version of all that is installed",
    "gpu": "name, driver and CUDA version of the graphics card; null without one",
    "versions": "of torch, torchvision, timm, numpy, as far as imported",
    "python": "version",
    "host": "name of the machine",
    "ranks": "processes that share the run, 1 without `--distributed ddp`",
    "device": "cpu, cuda:0, ...",
    "time": "UTC",
    "facts_version": "version of the facts below; 2: the fingerprint is of file contents",
    "dataset_fingerprint": "sha256 of the content and labels of all samples",
    "protocol": "setting, numbers of tasks and classes, order of the tasks, size of an image",
    "class_names": "in the order of the stream",
    "templates_sha256": "of the prompt templates",
    "initial_sha256": "of parameters and buffers before training",
    "reference_sha256": "of the reference images and texts of a method that reads some, or null",
    "files_sha256": "of files that flags name",
    "data": "what the dataset found out about its files",
    "class_order": "raw label of each class in the order of the stream, or null",
    "threads": "of torch",
    "weights_sha256": "of the pre-trained weights, or null",
    "preset": "name and hash of `--protocol`, and the flags given against it; null without one",
    "plugins": "files from elsewhere that were imported, with sha256",
}
TASK = {
    "type": "`task`",
    "task": "number of the task just trained, from 0",
    "scores": "the rows R[t, :] of the matrices above, for this t",
    "evaluated": "false after a task that `--eval_every` or `--eval_final` leaves out: it has no scores, and summary "
    "keys that need them are absent",
    "per_class": None,
    "confusion": None,
    "loss": "mean training loss of each epoch of the task, as `observe` returns it",
    "ece": None,
    "test_images": "images in the test set of each task that was scored",
    "seconds": "of this task by phase: begin_task, train, end_task, evaluate, probe, save",
    "wall_s": "seconds since the start, those of earlier processes of a resumed run included",
    "peak_bytes": "highest resident memory (`rss`) and, where a GPU is used, its memory (`gpu`)",
    "stored_bytes": "what the method keeps between tasks besides its network, by attribute",
    "parameters": "of the network: `trainable` now and `total`",
    "gradient_bytes_per_step": "that each rank averages with the others after a backward pass, 0 in a run of one",
    "probes": "with `--probe`: percent on each probe after this task",
    "probes_untouched": "with `--probe`: the same of the model before the first task",
    "image_forwards": "images that went through the network or a copy of it so far",
    "question_forwards": "the same for questions, if the stream has them",
}
EPOCH = {
    "type": "`epoch`; with `--eval_epochs`",
    "task": "as above",
    "epoch": "epochs done",
    "class_il": "percent on the test set of each task seen",
}
FEATURES = {
    "type": "`features`; where features of images were not computed by this run",
    "task": "as above",
    "from_earlier_runs": "images whose features came from an earlier run",
    "folders": "where they lie",
}
WARNING = {"type": "`warning`", "text": "a warning of Python, once each"}
END = {
    "type": "`end`",
    "status": "`done`, `interrupted` or `failed`",
    "summary": "the scores above; empty unless done",
    "signal": "number of the signal, if interrupted",
    "error": "class and text of the error, if failed",
}
MATRICES = {
    "class_il": ("accuracy among the names seen so far (`vqa` in the summary, where questions are answered)", "j <= t"),
    "task_il": ("accuracy among the names of the test set's own task", "j <= t; all with `--eval_future`"),
    "all_names": ("accuracy among all names of the dataset, by `future_forward`", "all, with `--eval_future`"),
    "unseen_names": ("accuracy among the names not trained yet", "j > t, with `--eval_future`"),
    "exact_match": ("percent of predictions that are the first of a question's answers", "j <= t, questions"),
    "image_only": ("`class_il` where the image alone tells the class", "j <= t; streams that know, `mm-tiny`"),
    "caption_only": ("`class_il` where the caption alone tells the class", "j <= t; `mm-tiny`"),
    "both": ("`class_il` where both tell the class", "j <= t; `mm-tiny`"),
    "mixed_class_il": ("`class_il` from batches that mix the test sets", "j <= t, with `--mixed_batches`"),
    "mixed_task_il": ("`task_il` from mixed batches", "as `task_il`, with `--mixed_batches`"),
    "mixed_all_names": ("`all_names` from mixed batches", "as `all_names`, with `--mixed_batches`"),
    "all_names_zero_shot": ("`all_names` of zero-shot CLIP", "as `all_names`; `cgil`"),
    "all_names_mammoth": (
        "`all_names` with unnormalized keys of unseen names, as in Mammoth",
        "as `all_names`; `cgil`",
    ),
    "all_names_normalised": (
        "`all_names` with unit keys of unseen names, if `--future_scoring` uses unnormalized ones",
        "as `all_names`; `cgil`",
    ),
}
OWN = {  # scores that one method adds
    "route_acc": ("routing accuracy: percent of samples sent to their own task's prompt pool", "`clumo`"),
    "oracle_route": ("`class_il` with the true task's pool, where `--route key` is used", "`clumo`"),
    "key_route": ("`class_il` with the pool of the nearest keys, where `--route oracle` is used", "`clumo`"),
    "nmi_visual": ("normalized mutual information of visual keys and the stream's groups, percent", "`clumo`"),
    "nmi_text": ("the same of textual keys and wordings", "`clumo`"),
    "nme": ("`class_il` by the nearest mean of exemplars, unless `--predict nme` answers", "`exemplar-masking`"),
    "linear": ("`class_il` by the linear head, where another head answers (`--predict`)", "`exemplar-masking`"),
    "balanced": ("`class_il` by a class-balanced ridge regression on the exemplars", "`exemplar-masking`"),
    "exemplars": ("exemplars kept for each class of the task", "`exemplar-masking`"),
    "exemplar_bytes": ("bytes of an exemplar of the task", "`exemplar-masking`"),
    "kept_patches": ("percent of the patches of an exemplar that are kept", "`exemplar-masking`"),
    "kept_words": ("percent of the words of an exemplar that are kept", "`exemplar-masking`"),
    "kept_attention": ("percent of the attention on the patches that are kept", "`exemplar-masking`"),
}
SUMMARY = {  # in the summary, but not a function of a score matrix: formula, tasks
    "final_test": ("mean of `class_il` on the test sets, where `--validation` images took their place", "all trained"),
    "stored_bytes": ("sum of `stored_bytes` of the last task line", "all trained"),
    "image_forwards": ("`image_forwards` of the last task line", "all trained"),
    "peak_bytes": ("`rss` of the whole process", "all trained"),
    "wall_s": ("seconds of all processes of the run", "all trained"),
}
TRACED = [
    name
    for name, f in vars(metrics).items()
    if inspect.isfunction(f) and f.__module__ == metrics.__name__ and not name.startswith("_") and name != "summary"
]


class Named(np.ndarray):
    """A matrix that keeps its name through slices and copies."""

    def __array_finalize__(self, source):
        self.name = getattr(source, "name", "")


def named(name: str) -> Named:
    matrix = np.full((3, 3), 50.0).view(Named)
    matrix.name = name
    return matrix


def traced() -> dict[str, tuple[str, tuple[str, ...]] | None]:
    """Key of the summary -> metric and its matrices (or keys); None for values that no metric computes."""
    calls: dict[float, tuple[str, tuple[str, ...]]] = {}
    numbers = itertools.count(1)

    def noting(metric: str):
        def call(*given):
            value = float(next(numbers))
            names = [
                getattr(g, "name", "") or calls.get(g if isinstance(g, float) else -1.0, ("", ()))[0] for g in given
            ]
            calls[value] = metric, tuple(name for name in names if name)
            return value

        return call

    found: dict[str, tuple[str, tuple[str, ...]] | None] = {}
    with contextlib.ExitStack() as stack:
        for metric in TRACED:
            stack.enter_context(mock.patch.object(metrics, metric, noting(metric)))
        for setting, mtil, vqa in (("class-il", False, False), ("class-il", True, False), ("domain-il", False, True)):
            run, model, dataset = made_up(setting, mtil, vqa)
            summary = report.summary(run, model, dataset)
            found |= {key: calls.get(value) for key, value in summary.items() if key not in SUMMARY | {"ece": 0}}
            found |= {key: None for key in summary if key in SUMMARY}
    return found | {"ece": ("ece", ())}


def made_up(setting: str, mtil: bool, vqa: bool) -> tuple[Namespace, Namespace, Namespace]:
    """A run, a model and a dataset with everything that report reads, and all possible matrices."""
    rows = {
        "matrices": {name: named(name) for name in MATRICES},
        "untrained": named("untrained")[0],
        "ece": 0.5,
        "counts": named("test_images")[0],
        "final_test": [0.5],
        "probes": {"x": [0.5]},
    }
    if not mtil:
        for name in [n for n in MATRICES if n.startswith("mixed_")]:
            rows["matrices"].pop(name)
    rows["matrices"] |= {name: named(name) for name in OWN}
    forwards = {"image_forwards": 0.5, "question_forwards": 0.5}
    run = Namespace(
        rows=rows, forwards=lambda: forwards, wall_s=0.5, watch=Stopwatch(), loop_state={}, args=Namespace()
    )
    model = Namespace(
        reference_sha256=lambda: None,
        device=torch.device("cpu"),
        stored_bytes=lambda: {"buffer": 1},
        extra_scores=lambda: dict.fromkeys(OWN, []),
        parameters=lambda: iter(()),
        state_dict=lambda: {},
    )
    dataset = Namespace(
        **{"N_TASKS": 3, "N_CLASSES": 3, "N_CLASSES_PER_TASK": 1, "SETTING": setting, "MTIL": mtil, "VQA": vqa},
        EVIDENCE=EVIDENCE,
        **{"SIZE": (1, 1), "task_order": [0, 1, 2], "fingerprint": lambda: "", "facts": lambda: {}},
        **{"get_class_names": lambda: [], "class_templates": lambda: []},
    )
    return run, model, dataset


def parts(metric: str) -> dict[str, str]:
    """Formula (the first sentence), when it is missing, tasks and paper of a metric, from its docstring."""
    text, _, rest = inspect.getdoc(getattr(metrics, metric)).partition("\n\nTasks: ")
    tasks, _, paper = rest.partition("\nPaper: ")
    if not paper:
        raise SystemExit(f"error: {metric} in utils/engine/metrics.py: its docstring needs the lines Tasks: and Paper:")
    formula, *more = re.split(r"(?<=\w|\]|\)|\|)\. (?=[A-Z`])", " ".join(text.split()), maxsplit=1)
    return {"formula": formula.rstrip("."), "more": "".join(more), "tasks": tasks, "paper": " ".join(paper.split())}


def described(kind: str, written: set[str], known: dict) -> None:
    """Stop at a key that is written but not described here, or described but not written."""
    if wrong := written ^ set(known):
        raise SystemExit(f"error: scripts/metrics_page.py and the code disagree on keys of {kind}: {sorted(wrong)}")


def check() -> None:
    run, model, dataset = made_up("class-il", False, False)
    labels = {"label": np.zeros(1, dtype=int), "prediction": np.zeros(1, dtype=int)}
    described(
        "a task line",
        {"type", *report.task_row(run, model, dataset, 0, labels), *report.task_row(run, model, dataset, 0, None)},
        TASK,
    )
    args = Namespace()
    described("the start line", {"type", "schema", "config_hash", *launch.start_line(args, {}, dataset, model)}, START)


def summary_rows() -> list[list[str]]:
    found, rows = traced(), []
    titles = report.TITLES
    for key in sorted(found, key=lambda k: list(titles).index(k) if k in titles else len(titles)):
        if found[key] is None:
            formula, tasks, of, paper = *SUMMARY[key], "", "none"
        else:
            metric, of = found[key]
            text = parts(metric)
            formula, tasks, paper = text["formula"], text["tasks"], text["paper"]
            of = ", ".join(f"`{name}`" for name in of)
        rows.append([f"`{key}`", title_of(key), of, formula, tasks, paper])
    return rows


def title_of(key: str) -> str:
    """The name in the table printed at the end of a run, or what it is computed from."""
    variants = [name.removeprefix("all_names") for name in MATRICES if name.startswith("all_names_")]
    ending = next((v for v in variants if key.endswith(v)), "")
    if key in report.TITLES or not ending:
        return report.TITLES.get(key) or OWN[key.removesuffix("_last")][0]
    return f"{report.TITLES[key.removesuffix(ending)]}: {MATRICES[f'all_names{ending}'][0]}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def line_table(known: dict[str, str | None]) -> str:
    of = {"per_class": "per_class_accuracy", "ece": "ece", "confusion": "confusion"}
    meaning = {key: text or f"{parts(of[key])['formula']}" for key, text in known.items()}
    return table(["key", "what it is"], [[f"`{key}`", text] for key, text in meaning.items()])


def page() -> str:
    check()
    matrices = [[f"`{name}`", what, cells] for name, (what, cells) in MATRICES.items()]
    own = [[f"`{name}`", what, f"j <= t; {model}"] for name, (what, model) in OWN.items()]
    missing = [[f"`{m}`", parts(m)["more"]] for m in TRACED if parts(m)["more"]]
    convention = " ".join(inspect.getdoc(metrics).partition("\n\n")[2].split())
    return f"""# Every number of a record

Written by `python scripts/metrics_page.py` from `utils/engine/metrics.py` and from the code that writes the record; a
test keeps it up to date.

A run writes `record.jsonl`, one JSON object per line: `start`, a `task` line for each task, `end`, and `epoch`,
`features` and `warning` lines where there are any. Scores are percent. A value that is not finite is null.

## Summary

The flat scores of the `end` line. *Of* is the matrix R (or the scores) that the formula is computed from. {convention}

{table(["key", "name", "of", "formula", "tasks", "paper"], summary_rows())}

A score that is NaN is left out of the summary. When that happens, and other remarks:

{table(["metric", ""], missing)}

With `--probe`, for each probe and for each retrieval score of a folder with captions (`i2t`: images find captions,
`t2i`: captions find images; `r1`, `r5`, `r10`: a right one among the first so many, ties counted against):
`probe_<name>_last`, percent after the last task, and `probe_<name>_drop`, the percent of the untouched model minus the
lowest after any task, negative if it only rose.

## Score matrices

`scores` of the task line t holds row t of each; j is the test set. `null` means not measured.

{table(["key", "what R[t, j] is", "cells"], [*matrices, *own])}

## Lines

### start

{line_table(START)}

### task

{line_table(TASK)}

### epoch

{line_table(EPOCH)}

### features

{line_table(FEATURES)}

### warning

{line_table(WARNING)}

### end

{line_table(END)}
"""


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")
