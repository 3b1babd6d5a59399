"""The one reader of record.jsonl for tables and pages, with the one interval and the one Markdown table.

Every record is checked against utils/engine/record_schema.py when it is read; a bad one is reported in one line and
skipped.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import t

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.engine.record import read_record
from utils.engine.record_schema import wrong_record
from utils.errors import UserError
from utils.escape import clean, in_markdown


class Run(NamedTuple):
    folder: Path
    start: dict
    tasks: list[dict]
    end: dict  # empty where there is none
    more: list[dict] = []  # lines of other kinds: warnings, epochs, reused features

    @property
    def args(self) -> dict:
        return self.start["args"]

    @property
    def seed(self) -> int | None:
        return self.args.get("seed")

    @property
    def notes(self) -> str:
        """The arm: --notes, or the method."""
        return self.args.get("notes") or self.args["model"]

    @property
    def summary(self) -> dict[str, float] | None:
        """Scores and costs that the summary has; None if the run is not finished."""
        return (
            None
            if self.end.get("status") != "done"
            else {k: v for k, v in self.end["summary"].items() if v is not None}
        )


def read(path: Path, needs: Sequence[str] = ("model",)) -> Run:
    """One record whose arguments have what `needs` names; UserError says what is wrong with it."""
    rows = read_record(path)
    told = wrong_record(rows, needs)
    if told:
        raise UserError(f"{path}: {told}")
    tasks, last = [row for row in rows if row["type"] == "task"], rows[-1]
    more = [row for row in rows if row["type"] not in {"start", "task", "end"}]
    return Run(path.parent, rows[0], tasks, last if last["type"] == "end" else {}, more)


def load(results: Path, needs: Sequence[str] = ("model",)) -> tuple[list[Run], list[str]]:
    """All runs below a folder, oldest first, and one line for each record that cannot be used."""
    runs, broken = [], []
    for path in sorted(results.rglob("record.jsonl"), key=lambda p: p.parent.name):
        try:
            runs.append(read(path, needs))
        except UserError as error:
            broken.append(clean(error, 600))
    return runs, broken


def finished(results: Path) -> list[Run]:
    """The finished runs below a folder, oldest first; skipped ones are reported on stderr."""
    runs, broken = load(results)
    for line in broken:
        print(f"left out: {line}", file=sys.stderr)
    return [run for run in runs if run.summary is not None]


def averages(tasks: list[dict]) -> dict[str, float]:
    """`<score>_avg` of each score: mean over the tasks of its mean over the tasks seen by then."""
    scores = [task["scores"] for task in tasks]
    names = [name for name in (scores[0] if scores else ()) if all(name in row for row in scores)]
    seen = {name: [row[name][: k + 1] for k, row in enumerate(scores)] for name in names}
    whole = {name: rows for name, rows in seen.items() if all(v is not None for values in rows for v in values)}
    return {f"{name}_avg": float(np.mean([np.mean(values) for values in rows])) for name, rows in whole.items()}


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean (Student's t); NaN for one value."""
    return (
        float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
        if len(values) > 1
        else math.nan
    )


def spread(values: Sequence[float], sign: str = "", at_least: int = 2) -> str:
    """Mean, and ± half the 95 % interval from `at_least` values on; "+" as `sign` shows that of the mean."""
    if not len(values):
        return ""
    return f"{np.mean(values):{sign}.1f}" + (f" ± {interval(values):.1f}" if len(values) >= max(2, at_least) else "")


def markdown(head: Sequence, rows: Iterable[Sequence]) -> str:
    """A table that ends with a line break; cells are escaped, since users write them."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(in_markdown(cell) for cell in line)} |\n" for line in lines)
