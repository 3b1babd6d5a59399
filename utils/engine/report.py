"""The output of a run: a row per task, a final table, the heat maps, and the rows of the record."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils import ranks
from utils.engine import accounting, metrics, probes
from utils.engine import record as results
from utils.features import FeatureStore
from utils.settings import SPLIT_SETTINGS, option

if TYPE_CHECKING:
    from datasets.utils.continual_dataset import ContinualDataset
    from models.utils.continual_model import ContinualModel
    from utils.engine.run import Run


def task_row(
    run: Run, model: ContinualModel, dataset: ContinualDataset, task: int, per_class: dict[str, np.ndarray] | None
) -> dict:
    """The record's line about one task: scores of every test set, unless it was not evaluated, and costs."""
    matrices = run.rows["matrices"]
    by_class: Iterable[float] = []
    confused = np.empty((0, 3))
    if per_class is not None and per_class["label"].ndim == 1:
        by_class = metrics.per_class_accuracy(per_class["prediction"], per_class["label"], dataset.N_CLASSES)
        if task == option(run.args, "stop_after", dataset.N_TASKS - 1):  # for every task it would fill the record
            confused = metrics.confusion(per_class["prediction"], per_class["label"])
    row = {
        "task": task,
        "scores": {name: R[task].tolist() for name, R in matrices.items() if not np.isnan(R[task]).all()},
        "per_class": list(map(float, by_class)),
        "confusion": confused.tolist(),
        "loss": list(run.loop_state.get("loss", [])),
        "ece": run.rows["ece"],
        "test_images": [int(n) for n in run.rows.get("counts", [])],
        "seconds": dict(run.watch.phases),
        "wall_s": run.wall_s,
        "peak_bytes": accounting.peak_bytes(model.device),
        "stored_bytes": model.stored_bytes(),
        "parameters": accounting.parameter_counts(model),
        "gradient_bytes_per_step": ranks.bytes_per_step(),
    }
    absent = {"evaluated": False} if per_class is None else {}
    return row | absent | run.forwards() | probes.of_task(run.rows)


def note_reused(run: Run, model: ContinualModel, task: int) -> None:
    """A line of the record if features of this task were not computed by this process."""
    stores = [value for value in vars(model).values() if isinstance(value, FeatureStore)]
    count, run.reused = sum(store.reused for store in stores) - run.reused, sum(store.reused for store in stores)
    if count and run.record is not None:
        run.record.features(
            {"task": task, "from_earlier_runs": count, "folders": sorted({str(store.root) for store in stores})}
        )


def _mean(values: list[float]) -> float:
    values = [v for v in values if v is not None and not np.isnan(v)]
    return float(np.mean(values)) if values else float("nan")


def over_images(args: Namespace) -> bool:
    """--accuracy_weighting images: means over the images of all classes seen come first."""
    return bool(option(args, "accuracy_weighting", "tasks") == "images")


def mean_seen(row: dict, values: list[float], images: bool) -> float:
    """Mean over the test sets seen by then, or over their images."""
    seen, counts = values[: row["task"] + 1], row.get("test_images") or []
    if not images or len(counts) < len(seen):
        return _mean(seen)
    return float(metrics.last_images(np.array([seen] * len(seen), dtype=np.float64), counts))


def print_task(row: dict, n_tasks: int, vqa: bool = False, images: bool = False) -> None:
    """One line on stdout when a task is done."""
    task, scores = row["task"], row["scores"]
    parts = [f"task {task + 1}/{n_tasks}"] + ["not evaluated"] * (row.get("evaluated") is False)
    headline = (("exact_match", "exact match"),) if vqa else ()
    for name, title in (*headline, ("class_il", "vqa" if vqa else "class-il"), ("task_il", "task-il")):
        if name in scores:
            parts.append(f"{title} {mean_seen(row, scores[name], images):6.2f}")
    if "route_acc" in scores:
        parts.append(f"routing accuracy {_mean(scores['route_acc'][: task + 1]):6.2f}")
    if "all_names" in scores and task + 1 < n_tasks:
        parts.append(f"future {_mean(scores['all_names'][task + 1 :]):6.2f}")
    parts += [f"{name} {value:6.2f}" for name, value in row.get("probes", {}).items() if not re.search(r"_r\d+$", name)]
    parts.append(f"{row['wall_s']:8.1f} s")
    print("  ".join(parts), flush=True)


def print_epoch(row: dict) -> None:
    print(f"  task {row['task'] + 1} epoch {row['epoch']}  accuracy {_mean(row['class_il']):6.2f}", flush=True)


def seen_names(class_il: np.ndarray, own: np.ndarray) -> np.ndarray:
    """A dataset already seen is scored among the names of all datasets seen, one not yet seen among its own."""
    R: np.ndarray = class_il.copy()
    unseen = np.triu_indices_from(R, 1)
    R[unseen] = own[unseen]
    return R


def other_matrices(matrices: dict, rows: slice, dataset: ContinualDataset, nameless: bool) -> dict[str, np.ndarray]:
    """The matrices beside the first one that the stream's setting scores."""
    named: dict[str, np.ndarray] = {}
    if dataset.VQA:
        named["exact_match"] = matrices["exact_match"][rows]
    if dataset.SETTING in SPLIT_SETTINGS:
        named["task_il"] = matrices["task_il"][rows]
        if dataset.MTIL and dataset.N_TASKS > 1:
            for before in ("", "mixed_") if "mixed_task_il" in matrices else ("",):
                own, everything = matrices[f"{before}task_il"][rows], matrices[f"{before}all_names"][rows]
                named |= {f"{before}mtil": own, f"{before}xtail": everything}
                if not nameless:
                    named[f"{before}odcl"] = seen_names(matrices[f"{before}class_il"][rows], own)
    if not np.isnan(matrices["all_names"]).all():
        named |= {
            "future": matrices["all_names"],
            "seen_all": matrices["all_names"],
            "future_unseen": matrices["unseen_names"],
        }
    return named


def summary(run: Run, model: ContinualModel, dataset: ContinualDataset) -> dict[str, float]:
    """The flat scores and costs that end a record."""
    matrices = run.rows["matrices"]
    nameless = np.isnan(matrices["class_il"]).all()  # with the task given, there are no scores among all names
    measured = [t for t, row in enumerate(matrices["task_il" if nameless else "class_il"]) if not np.isnan(row).all()]
    rows = slice(0, measured[-1] + 1 if measured else 0)
    class_il = matrices["class_il"][rows].copy()
    untrained = run.rows.get("untrained")
    for task, value in run.rows.get("before", {}).items():
        if task < dataset.N_TASKS and task - 1 < len(class_il):
            class_il[task - 1, task] = value
    name = "vqa" if dataset.VQA else "class_il"
    named = {} if nameless else {name: class_il}
    named |= other_matrices(matrices, rows, dataset, nameless)
    random_rows = {name: untrained} if untrained is not None and not nameless else None
    scores = metrics.summary(named, random_rows, run.rows.get("counts"))
    if "mixed_task_il" in matrices:
        gaps = [metrics.largest_gap(matrices[n], matrices[f"mixed_{n}"]) for n in ("class_il", "task_il", "all_names")]
        scores["mixed_gap"] = max(gap for gap in gaps if not np.isnan(gap))
    for name in sorted(matrices):
        if name.startswith("all_names_"):
            other = metrics.summary({"future": matrices[name], "seen_all": matrices[name]})
            scores |= {f"{key}_{name.removeprefix('all_names_')}": value for key, value in other.items()}
    scores |= {f"{name}_last": metrics.last(matrices[name][rows]) for name in model.extra_scores() if name in matrices}
    for name in dataset.EVIDENCE:
        if name in matrices:
            scores[f"{name}_last"] = metrics.last(matrices[name][rows])
    if "final_test" in run.rows:
        scores["final_test"] = _mean(run.rows["final_test"])
    if not np.isnan(run.rows.get("ece", np.nan)):
        scores["ece"] = run.rows["ece"]
    costs = {
        "stored_bytes": sum(model.stored_bytes().values()),
        "image_forwards": run.forwards()["image_forwards"],
        "peak_bytes": accounting.peak_bytes(model.device)["rss"],
        "wall_s": run.wall_s,
    }
    return scores | probes.summary(run.rows) | costs


TITLES = {
    "class_il_last": "class-il, final average",
    "class_il_avg": "class-il, average over tasks",
    "class_il_last_images": "class-il, final accuracy over images",
    "class_il_avg_images": "class-il, average of accuracies over images",
    "class_il_forgetting": "class-il, forgetting",
    "class_il_bwt": "class-il, backward transfer",
    "class_il_fwt": "class-il, forward transfer",
    "exact_match_last": "exact match, final average",
    "exact_match_avg": "exact match, average over tasks",
    "exact_match_forgetting": "exact match, forgetting",
    "exact_match_bwt": "exact match, backward transfer",
    "vqa_last": "vqa, final average",
    "vqa_avg": "vqa, average over tasks",
    "vqa_forgetting": "vqa, forgetting",
    "vqa_bwt": "vqa, backward transfer",
    "vqa_fwt": "vqa, forward transfer",
    "image_only_last": "class-il, evidence in the image alone, final average",
    "caption_only_last": "class-il, evidence in the caption alone, final average",
    "both_last": "class-il, evidence in both, final average",
    "route_acc_last": "routing accuracy (samples sent to their own task's prompt pool)",
    "oracle_route_last": "score with the true task's prompt pool",
    "key_route_last": "score with the prompt pool of the nearest keys",
    "nmi_visual_last": "normalized mutual information of visual keys and the stream's groups of images",
    "nmi_text_last": "normalized mutual information of textual keys and the stream's wordings",
    "mtil_transfer": "mtil, transfer",
    "mtil_avg": "mtil, average",
    "mtil_last": "mtil, last",
    "odcl_transfer": "odcl (names seen), transfer",
    "odcl_avg": "odcl (names seen), average",
    "odcl_last": "odcl (names seen), last",
    "xtail_transfer": "x-tail (all names), transfer",
    "xtail_avg": "x-tail (all names), average",
    "xtail_last": "x-tail (all names), last",
    "mixed_mtil_transfer": "mtil on mixed batches, transfer",
    "mixed_mtil_avg": "mtil on mixed batches, average",
    "mixed_mtil_last": "mtil on mixed batches, last",
    "mixed_odcl_transfer": "odcl on mixed batches, transfer",
    "mixed_odcl_avg": "odcl on mixed batches, average",
    "mixed_odcl_last": "odcl on mixed batches, last",
    "mixed_xtail_transfer": "x-tail on mixed batches, transfer",
    "mixed_xtail_avg": "x-tail on mixed batches, average",
    "mixed_xtail_last": "x-tail on mixed batches, last",
    "mixed_gap": "largest change of a score from mixing batches",
    "task_il_last": "task-il, final average",
    "task_il_avg": "task-il, average over tasks",
    "task_il_forgetting": "task-il, forgetting",
    "task_il_bwt": "task-il, backward transfer",
    "final_test": "test set after validation",
    "ci_transfer": "ci-transfer (future images, all names)",
    "seen_all": "seen images, all names",
    "future_unseen": "future images, unseen names",
    "ci_harmonic": "harmonic mean of ci-transfer and seen",
    "ci_transfer_zero_shot": "ci-transfer of zero-shot CLIP",
    "seen_all_zero_shot": "seen images, zero-shot CLIP",
    "ci_harmonic_zero_shot": "harmonic mean, zero-shot CLIP",
    "ci_transfer_mammoth": "ci-transfer, raw unseen keys",
    "ci_transfer_normalised": "ci-transfer, unit unseen keys",
    "ece": "calibration error",
    "stored_bytes": "stored bytes",
    "image_forwards": "images encoded",
    "peak_bytes": "peak memory",
    "wall_s": "seconds",
}


def print_test_sets(run: Run, dataset: ContinualDataset) -> None:
    """Question answering: a row for each test set, after the last task."""
    shown = {
        "exact_match": "exact match",
        "class_il": "vqa",
        "route_acc": "routing accuracy",
        "oracle_route": "true pool",
        "key_route": "nearest pool",
        "nmi_visual": "NMI visual",
        "nmi_text": "NMI text",
    }
    found = {title: run.rows["matrices"][name] for name, title in shown.items() if name in run.rows["matrices"]}
    measured = [t for t in range(dataset.N_TASKS) if not np.isnan(found["vqa"][t]).all()]
    if measured:
        rows = [[str(j + 1), *(float(R[measured[-1], j]) for R in found.values())] for j in range(measured[-1] + 1)]
        print(results.format_table([["task", *found], *rows]))


FIRST = {"seen": "odcl_", "all": "xtail_"}


def ordered_titles(args: Namespace | dict) -> dict[str, str]:
    """TITLES with the scores of --accuracy_weighting and --mtil_scoring in front."""
    args = vars(args) if isinstance(args, Namespace) else args
    images = args.get("accuracy_weighting") == "images"
    first = [key for key in TITLES if images and key.startswith("class_il_") and key.endswith("_images")]
    scoring = args.get("mtil_scoring") or "domain"
    first += [key for key in TITLES if scoring != "domain" and key.startswith(FIRST[scoring])]
    return {key: TITLES[key] for key in [*first, *TITLES]}


def title_of(name: str) -> str:
    """What the tables call a score; those of probes are named by the command."""
    return TITLES.get(name) or name.replace("_", " ")


def print_summary(
    scores: dict[str, float], run: Run | None = None, folder: Path | None = None, args: Namespace | None = None
) -> None:
    """The final table on stdout."""
    rows = [["score", "value"]]
    titles = ordered_titles(run.args if run else args or Namespace())
    for name in [*titles, *(name for name in scores if name.startswith("probe_"))]:
        if name in scores:
            rows.append([title_of(name), human(name, scores[name])])
    print(results.format_table(rows))
    folder = folder or (run.folder if run else None)
    if folder is not None:
        print(f"record: {folder / 'record.jsonl'}")
        for image in sorted(folder.glob("*.png")):
            print(f"plot:   {image}")


def human(name: str, value: float) -> str:
    if name.endswith("bytes"):
        return f"{value / 2**20:.1f} MiB"
    if name == "image_forwards":
        return f"{int(value)}"
    return f"{value:.2f}"


def plot(run: Run, dataset: ContinualDataset) -> None:
    """Heat maps of the score matrices, next to the record."""
    titles = {"class_il": "accuracy among names seen so far (%)", "all_names": "accuracy among all names (%)"}
    if dataset.VQA:
        titles["class_il"] = "question answering (%)"
    if dataset.MTIL:
        titles["task_il"] = "accuracy among the task's own names (%)"
    folder = run.folder or Path()
    for name, title in titles.items():
        R = run.rows["matrices"][name]
        if len(R) > 1 and not np.isnan(R).all():
            results.plot_matrix(R, folder / f"{name}.png", f"{run.args.model} on {run.args.dataset}: {title}")
