"""The one table behind the terminal, the page and every --format: arms with their cells, the best, reported values."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from scripts import reported
from scripts.reporting.arms import Arm, columns_of, heading_of, one_task, tables, values_of
from scripts.reporting.columns import GROUPS, cell, group_of, heading, less_is_better
from scripts.reporting.names import names_of
from utils.escape import clean


class Row(NamedTuple):
    """An arm of a table with the published values beside it: (label, one text per column, whether it compares)."""

    arm: Arm
    name: str
    added: str
    full: str
    flags: str
    values: dict[str, dict[int | None, float]]  # column -> seed -> value
    reported: list[tuple[str, list[str], bool]]


class Table(NamedTuple):
    dataset: str
    heading: str
    keys: list[str]
    rows: list[Row]

    @property
    def best(self) -> dict[str, set[int]]:
        return best_of([row.arm for row in self.rows], self.keys)

    @property
    def twins(self) -> dict[str, str]:
        """A score over images or over tasks -> the other one, if it stands earlier and test sets of one size make all
        their numbers equal."""
        pairs = {a: b for a in self.keys if (b := a.removesuffix("_images")) != a and b in self.keys}
        first = {a: b if self.keys.index(b) < self.keys.index(a) else a for a, b in pairs.items()}
        return {(a if first[a] == b else b): first[a] for a, b in pairs.items() if self.equal(a, b)}

    def equal(self, one: str, other: str) -> bool:
        texts = [[{seed: f"{v:.2f}" for seed, v in row.values[k].items()} for row in self.rows] for k in (one, other)]
        return texts[0] == texts[1]

    @property
    def by_group(self) -> "Table":
        """The same columns, those of a group side by side."""
        return self.having(sorted(self.keys, key=lambda key: GROUPS.index(group_of(key))))

    def without(self, keys: Iterable[str]) -> "Table":
        gone = set(keys)
        return self.having([key for key in self.keys if key not in gone])

    def having(self, keys: Sequence[str]) -> "Table":
        """The same rows with these columns."""
        places = [self.keys.index(key) for key in keys]
        rows = [
            row._replace(reported=[(label, [cells[k] for k in places], same) for label, cells, same in row.reported])
            for row in self.rows
        ]
        return self._replace(keys=list(keys), rows=rows)


def means_of(arm: Arm) -> dict[str, float]:
    runs = [values_of(run) for run in arm]
    return {k: float(np.mean([run[k] for run in runs if k in run])) for k in {k for run in runs for k in run}}


def best_of(arms: Sequence[Arm], keys: Sequence[str]) -> dict[str, set[int]]:
    """Score -> the arms that are best, of a table with several; an upper bound does not compete with other methods."""
    bounds = [one_task(arm[0]) for arm in arms]
    means = [{} if bound and not all(bounds) else means_of(arm) for arm, bound in zip(arms, bounds, strict=True)]
    best = {}
    for key in keys:
        values = {n: mean[key] for n, mean in enumerate(means) if key in mean}
        if len(values) > 1:
            top = (min if less_is_better(key) else max)(values.values())
            best[key] = {n for n, value in values.items() if value == top}
    return best


def table(
    dataset: str, arms: Sequence[Arm], wanted: Sequence[str] | None = None, groups: Sequence[str] = GROUPS
) -> Table:
    keys = columns_of(arms, wanted, groups)
    rows = []
    for arm, name in zip(arms, names_of(arms), strict=True):
        runs = [(run.seed, values_of(run)) for run in arm]
        values = {key: {seed: run[key] for seed, run in runs if key in run} for key in keys}
        beside = [
            (clean(cells[0]), [clean(c) for c in cells[2:]], not grey)
            for cells, grey in reported.rows_beside(arm[0], means_of(arm), keys)
        ]
        rows.append(Row(arm, *name, values, beside))
    return Table(dataset, heading_of(arms[0][0]), keys, rows)


def all_tables(
    groups: dict[str, list[Arm]], wanted: Sequence[str] | None = None, columns: Sequence[str] = GROUPS
) -> list[Table]:
    return [table(dataset, arms, wanted, columns) for dataset, every in groups.items() for arms in tables(every)]


def lines_of(found: Table, kind: str = "ci") -> tuple[list[list[str]], list[list[str]]]:
    """Head and rows as text, published values below each arm, and the mark of each cell: best, grey or empty."""
    lines, best = [["method", "seeds", *map(heading, found.keys)]], found.best
    marks = [[""] * len(lines[0])]
    for number, row in enumerate(found.rows):
        cells = [cell(key, list(row.values[key].values()), kind) for key in found.keys]
        lines.append([row.full, str(len(row.arm)), *cells])
        marks.append(["", "", *("best" if number in best.get(key, ()) else "" for key in found.keys)])
        for label, values, same in row.reported:
            lines.append([label, "", *values])
            marks.append(["" if same else "grey"] * len(lines[-1]))
    return lines, marks
