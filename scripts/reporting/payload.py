"""What the charts of the page draw: a JSON value per table with the arms' seeds, matrices, classes and losses.

Scores keep two decimals and heat maps one, a confusion matrix its largest cells; `fit` drops details, and says which,
when the page would be too large.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from scripts import records
from scripts.reporting.arms import Arm, one_task
from scripts.reporting.columns import group_of, heading, less_is_better
from scripts.reporting.rows import Row, Table
from utils.engine.report import mean_seen
from utils.escape import clean

LIMIT = 2_600_000  # bytes of the data in a page; the rest of a page of 200 runs stays below 400 kB
CELLS = 250  # of a confusion matrix
WHOLE = 40  # classes whose confusion matrix is kept whole
SEEDS = 60  # for which the page has the factor of an interval
HEAT = ("class_il", "task_il", "all_names", "exact_match")  # matrices on the page before others
MORE_HEAT = 3


def rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), digits)


def curve(run: records.Run, score: str = "class_il") -> list[float]:
    """Mean of a score over the tasks seen, after each task; over their images where the run counts these."""
    images = run.args.get("accuracy_weighting") == "images"
    filled = rows_of(run, score)
    rows = [row for row in run.tasks if filled and (score in row["scores"] or not row["scores"])]
    if images:
        return [float(mean_seen(row, values, True)) for row, values in zip(rows, filled, strict=True)]
    return [float(np.mean(values[: row["task"] + 1])) for row, values in zip(rows, filled, strict=True)]


def rows_of(run: records.Run, score: str) -> list[list[float]]:
    """The rows of a matrix; that of a task that was not evaluated is empty (NaN)."""
    some = [len(row["scores"][score]) for row in run.tasks if score in row["scores"]]
    gap = [None] * max(some, default=0)
    found = [
        row["scores"].get(score, gap) for row in run.tasks if some and (score in row["scores"] or not row["scores"])
    ]
    return [[math.nan if v is None else float(v) for v in values] for values in found]


def scores_of(arm: Arm) -> list[str]:
    """Matrices that all runs of an arm have after every task, those of every stream first."""
    every = [set(row["scores"]) for run in arm for row in run.tasks if row["scores"]]
    names = sorted(set.intersection(*every)) if every else []
    return [n for n in HEAT if n in names] + [n for n in names if n not in HEAT]


def matrix(arm: Arm, score: str) -> list[list[float | None]] | None:
    """Mean over seeds of a matrix; a cell that some run lacks is empty; None if the runs have other shapes."""
    found = [rows_of(run, score) for run in arm]
    shapes = {tuple(map(len, rows)) for rows in found}
    if len(shapes) != 1 or len(set(next(iter(shapes)))) > 1:
        return None
    return [[rounded(v, 1) for v in row] for row in np.array(found, float).mean(0)]


def probe_curves(arm: Arm) -> dict[str, list[list[float]]]:
    """Probe -> for each run its percent before and after each task."""
    found: dict[str, list[list[float]]] = {}
    for run in arm:
        rows = [row for row in run.tasks if row.get("probes")]
        for name in rows[0]["probes"] if rows else ():
            values = [rows[0].get("probes_untouched", {}).get(name), *(row["probes"].get(name) for row in rows)]
            found.setdefault(name, []).append([math.nan if v is None else v for v in values])
    return found


def class_names(run: records.Run) -> list[str]:
    """One name per class, in the order of the run's stream; the raw label where there is no name."""
    row = run.tasks[-1] if run.tasks else {}
    names, order = run.start.get("class_names") or [], run.start.get("class_order") or []
    count = max(len(row.get("per_class") or []), 1 + max((max(c[:2]) for c in row.get("confusion") or []), default=-1))
    return [
        clean(names[k], 60) if k < len(names) else f"class {order[k] if k < len(order) else k}" for k in range(count)
    ]


def per_class(arm: Arm) -> dict[str, float]:
    """Class -> accuracy after the last task, the mean over seeds; classes are matched by name."""
    found: dict[str, list[float]] = {}
    for run in arm:
        values = run.tasks[-1].get("per_class") or [] if run.tasks else []
        for name, value in zip(class_names(run), values, strict=False):
            if value is not None:
                found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def confusion(arm: Arm) -> Counter[tuple[str, str]]:
    """(class, predicted class) -> images after the last task, the sum over seeds."""
    found: Counter[tuple[str, str]] = Counter()
    for run in arm:
        names = class_names(run)
        for true, said, count in (run.tasks[-1].get("confusion") or []) if run.tasks else []:
            found[names[true], names[said]] += count
    return found


def losses(run: records.Run) -> tuple[list[float | None], list[int]]:
    """Mean loss of each epoch, and how many epochs each task had."""
    rows = [row.get("loss") or [] for row in run.tasks]
    return [rounded(v, 4) for values in rows for v in values], [len(values) for values in rows]


def same_length(found: Iterable[Sequence]) -> bool:
    found = list(found)
    return bool(found) and len({len(values) for values in found}) == 1 and len(found[0]) > 0


def arm_data(row: Row, classes: list[str]) -> dict:
    arm, scores = row.arm, scores_of(row.arm)
    curves = {score: [curve(run, score) for run in arm] for score in scores}
    place = {name: k for k, name in enumerate(classes)}
    cells, by_class = confusion(arm), per_class(arm)
    wrong = [item for item in cells.most_common() if item[0][0] != item[0][1]]
    kept = list(cells.items()) if len(classes) <= WHOLE else wrong[:CELLS]
    loss = [losses(run) for run in arm]
    heat = {s: m for s in scores if len(arm[0].tasks) > 1 and (m := matrix(arm, s)) is not None}
    return {
        "name": row.full,
        "seeds": [run.seed for run in arm],
        "one": one_task(arm[-1]),
        "values": {k: [rounded(v, 4) for v in [row.values[k].get(r.seed) for r in arm]] for k in row.values},
        "curves": {
            s: [[rounded(v) for v in line] for line in lines] for s, lines in curves.items() if same_length(lines)
        },
        "matrices": dict(list(heat.items())[: len(HEAT) + MORE_HEAT]),
        "classes": [rounded(by_class.get(name), 1) for name in classes] if by_class else [],
        "confusion": [[place[true], place[said], n] for (true, said), n in kept if true in place and said in place],
        "loss": [values for values, _ in loss] if same_length([v for v, _ in loss]) else [],
        "epochs": loss[-1][1],
        "probes": {
            clean(name): [[rounded(v) for v in line] for line in lines]
            for name, lines in probe_curves(arm).items()
            if same_length(lines) and not name.endswith(("_r5", "_r10"))
        },
    }


def task_names(arm: Arm) -> list[str]:
    """The names of the classes of each task where all seeds have the same; else nothing."""
    found = set()
    for run in arm:
        protocol, names = run.start.get("protocol") or {}, [clean(n, 40) for n in run.start.get("class_names") or []]
        sizes, count = protocol.get("classes_per_task"), protocol.get("n_tasks")
        if type(sizes) is int and type(count) is int and 0 <= count <= len(names):
            sizes = [sizes] * count
        told = isinstance(sizes, list) and all(type(n) is int and n > 0 for n in sizes)
        if protocol.get("setting") == "domain-il" or not told or sum(sizes) > len(names):
            return []
        ends = list(itertools.accumulate(sizes))
        found.add(tuple(", ".join(names[end - size : end]) for size, end in zip(sizes, ends, strict=True)))
    return list(found.pop()) if len(found) == 1 else []


def title_of_score(score: str, found: Table) -> str:
    """What a matrix is called: class_il is vqa where questions are answered."""
    if score == "class_il" and any(key.startswith("vqa_") for key in found.keys):
        return "vqa"
    return score.replace("_il", "-il").replace("_", " ")


def table_data(found: Table) -> dict:
    classes = list(dict.fromkeys(name for row in found.rows for run in row.arm for name in class_names(run)))
    equal = found.twins
    columns = [
        {"key": k, "title": heading(k), "group": group_of(k), "lower": less_is_better(k), "twin": equal.get(k)}
        for k in found.keys
    ]
    several = [row.arm for row in found.rows if not one_task(row.arm[-1])] or [row.arm for row in found.rows]
    return {
        "dataset": clean(found.dataset),
        "heading": found.heading,
        "columns": columns,
        "scores": {score: title_of_score(score, found) for row in found.rows for score in scores_of(row.arm)},
        "classes": classes,
        "tasks": task_names([run for arm in several for run in arm]),
        "arms": [arm_data(row, classes) for row in found.rows],
    }


DROPS = {
    "confusion matrices": ("confusion", []),
    "heat maps": ("matrices", {}),
    "losses": ("loss", []),
    "accuracies of classes": ("classes", []),
    "curves": ("curves", {}),
}


def text_of(data: dict) -> str:
    """JSON that an HTML page may hold: nothing in it ends the script element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def fit(tables: Sequence[Table], limit: int = LIMIT) -> tuple[str, list[str]]:
    """The data of all tables as JSON of at most `limit` bytes, and the details that were left out for that."""
    data = {
        "factors": [0, 0, *(records.interval(unit(n)) for n in range(2, SEEDS))],
        "tables": [table_data(found) for found in tables],
    }
    left_out: list[str] = []
    text = text_of(data)
    for name, (key, empty) in DROPS.items():
        if len(text) <= limit:
            break
        left_out.append(name)
        for table in data["tables"]:
            for arm in table["arms"]:
                arm[key] = empty
        text = text_of(data)
    return text, left_out


def unit(count: int) -> list[float]:
    """Numbers of standard deviation 1, so that `interval` of them is the factor for `count` seeds."""
    values = np.arange(count, dtype=float)
    return list((values - values.mean()) / values.std(ddof=1))
