"""Fabricated runs for the report: methods with seeds, joint training, probes, losses, runs without an end."""

import json
from pathlib import Path

import numpy as np

METHODS = {"er": 62.0, "derpp": 68.0, "icarl": 60.0, "sgd": 20.0, "cgil": 74.0, "gdumb": 48.0}


def start(method: str, dataset: str, seed: int, n_tasks: int, size: int, **more) -> dict:
    args = {"model": method, "dataset": dataset, "seed": seed, "notes": None, "lr": 0.1, "joint": False} | more
    argv = ["--model", method, "--dataset", dataset]
    argv += [word for name, value in more.items() for word in (f"--{name}", str(value))]
    return {
        "type": "start",
        "args": args,
        "argv": argv,
        "git_commit": "0123456789abcdef+",
        "versions": {"torch": "2.12.1", "timm": None},
        "python": "3.11.7",
        "host": "toy",
        "device": "cpu",
        "time": "2026-01-01T00:00:00+00:00",
        "threads": 1,
        "class_names": [f"class-{k}" for k in range(n_tasks * size)],
        "class_order": None,
        "dataset_fingerprint": "ab" * 32,
        "protocol": {"setting": "class-il", "n_tasks": n_tasks, "n_classes": n_tasks * size, "classes_per_task": size},
    }


def task_line(rng, t: int, n_tasks: int, size: int, level: float, joint: bool) -> dict:
    seen = n_tasks * size if joint else (t + 1) * size
    fade = [level + (100 - level) * 0.8 ** (t - j) for j in range(t + 1)]
    row = [float(np.clip(v + rng.normal(0, 2), 0, 100)) for v in fade] + [None] * (0 if joint else n_tasks - t - 1)
    by_class = np.clip(rng.normal(np.mean(fade), 8, seen), 0, 100)
    wrong = [[k, int(rng.integers(seen)), int(rng.integers(1, 9))] for k in range(seen) for _ in range(3)]
    return {
        "type": "task",
        "task": t,
        "scores": {"class_il": row, "task_il": [None if v is None else min(100.0, v + 15) for v in row]},
        "per_class": list(map(float, by_class)) + [None] * (n_tasks * size - seen),
        "confusion": [[k, k, 50] for k in range(seen)] + wrong if joint or t == n_tasks - 1 else [],
        "loss": [float(v) for v in 2.5 * np.exp(-0.3 * np.arange(5)) + rng.random(5) * 0.1],
        "test_images": [100] * (1 if joint else n_tasks),
        "parameters": {"trainable": int(1000 * level), "total": 11_000_000},
        "probes": {"zero-shot": 60.0 - t * (80 - level) / 20},
        "probes_untouched": {"zero-shot": 62.0},
        "wall_s": 10.0 * (t + 1),
    }


def finished(folder: Path, method: str, seed: int, dataset="seq-toy", n_tasks=5, size=4, level=50.0, **more) -> Path:
    """One finished run; with joint=True a single task of all classes."""
    rng, joint = np.random.default_rng([seed, len(method), int(level)]), bool(more.get("joint"))
    rows = [start(method, dataset, seed, n_tasks, size, **more)]
    rows += [task_line(rng, t, n_tasks, size, level, joint) for t in range(1 if joint else n_tasks)]
    R = [[v for v in row["scores"]["class_il"] if v is not None] for row in rows[1:]]
    last, average = float(np.mean(R[-1])), float(np.mean([np.mean(row) for row in R]))
    summary = {"class_il_last": last, "class_il_avg": average, "class_il_last_images": last}
    summary |= {"task_il_last": min(100.0, last + 15), "ece": 8.0, "probe_zero-shot_last": 55.0}
    if not joint:
        summary["class_il_forgetting"] = float(np.mean([row[j] - R[-1][j] for j, row in enumerate(R[:-1])]))
    stored = int(3e4 * level) if method != "sgd" else 0
    costs = {"stored_bytes": stored, "peak_bytes": 2**29, "wall_s": 10.0 * n_tasks + level, "image_forwards": 5000}
    rows.append({"type": "end", "status": "done", "summary": summary | costs})
    return write(folder, rows)


def write(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir(parents=True)
    (folder / "record.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def unfinished(folder: Path, status: str | None, **more) -> Path:
    rows = [start("er", "seq-toy", 9, 5, 4, lr=0.7), task_line(np.random.default_rng(0), 0, 5, 4, 50.0, False)]
    return write(folder, rows + ([{"type": "end", "status": status, "summary": {}, **more}] if status else []))


def everything(folder: Path) -> Path:
    """Two data sets: methods with three seeds, one of them with two settings, joint training, three open runs."""
    for dataset, n_tasks, methods in (("seq-toy", 5, METHODS), ("seq-long", 10, ("er", "sgd"))):
        for method, level in ((name, METHODS[name]) for name in methods):
            for seed in range(3):
                finished(folder / dataset / f"{method}-{seed}", method, seed, dataset, n_tasks, level=level)
    for seed in range(3):
        finished(folder / f"er-500-{seed}", "er", seed, level=70.0, buffer_size=500)
        finished(folder / f"joint-{seed}", "sgd", seed, level=85.0, joint=True)
    unfinished(folder / "open" / "failed", "failed", error="UserError: the loss is nan in task 2")
    unfinished(folder / "open" / "stopped", "interrupted", signal=15)
    unfinished(folder / "open" / "killed", None)
    return folder


def many(folder: Path, count: int = 200) -> Path:
    """Runs of 100 classes in 10 tasks: settings of six methods with five seeds each."""
    for number in range(count):
        arm, seed = divmod(number, 5)
        method = list(METHODS)[arm % 6]
        finished(
            folder / f"{number:03d}",
            method,
            seed,
            "seq-cifar100",
            10,
            10,
            METHODS[method] + arm // 6,
            lr=0.01 * (1 + arm // 6),
        )
    return folder
