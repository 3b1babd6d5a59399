"""Published numbers beside ours: datasets/protocols/reported.csv, each with its source and how it was verified.

A number can be compared where the protocol and the weights are the same. Where only one of them is, it is shown in
grey; where several sources contradict each other, all are shown.
"""

import csv
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts import records
from utils.cli import protocols, registry
from utils.engine.record import format_table
from utils.errors import UserError, shown

FILE = protocols.FOLDER / "reported.csv"


class Reported(NamedTuple):
    """A row of the file; `protocol` and `weights` are empty where the source does not settle them."""

    method: str
    dataset: str
    protocol: str
    weights: str
    metric: str
    value: float
    source: str
    verified: str
    published_as: str
    setting: str


@cache
def table() -> tuple[Reported, ...]:
    """All published numbers; a row without a source is an error."""
    rows = []
    with FILE.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, strict=True), start=2):
            if not (row["source"] or "").strip():
                raise UserError(f"{FILE} line {number}: no source")
            rows.append(Reported(**row | {"value": float(row["value"])}))
    return tuple(rows)


def of_dataset(dataset: str) -> list[Reported]:
    return [row for row in table() if row.dataset == registry.canonical(dataset)]


def preset_of(run: records.Run) -> dict:
    """The protocol of a run: name, sha256, deviations; empty without one."""
    return run.start.get("preset") or {}


def weights_of(run: records.Run) -> str:
    """The tag of the pre-trained weights that a run used."""
    args = run.args
    if run.start.get("weights_sha256"):
        return str(args.get("clip_backbone") or "")
    return str(args.get("vit") or args.get("backbone") or "")


def follows(run: records.Run) -> str:
    """The name of the protocol that a run follows as it is now, without deviations; else empty."""
    preset = preset_of(run)
    if not preset or preset.get("deviations"):
        return ""
    try:
        now = protocols.find(preset["name"], run.args["dataset"]).sha256
    except UserError:
        return ""
    return preset["name"] if now == preset["sha256"] else ""


def beside(run: records.Run) -> list[tuple[Reported, str]]:
    """Published numbers of a run's method and data set: with "" where they compare, else what is different."""
    protocol, weights, found = follows(run), weights_of(run), []
    for row in of_dataset(run.args["dataset"]):
        if row.method != registry.canonical(run.args["model"]):
            continue
        same_protocol, same_weights = bool(row.protocol) and row.protocol == protocol, row.weights == weights != ""
        if same_protocol or same_weights:
            other = "" if same_protocol and same_weights else "other weights" if same_protocol else "other protocol"
            found.append((row, other))
    return found


def rows_beside(run: records.Run, ours: dict[str, float], keys: Iterable[str]) -> list[tuple[list[str], bool]]:
    """(cells, grey) of a line per source: its values, and where they compare our difference."""
    keys, lines = list(keys), {}
    for row, other in beside(run):
        if row.metric not in keys:
            continue
        cells = lines.setdefault((other, row.source, row.verified, row.setting), [[""] * len(keys) for _ in range(1)])
        line = next((c for c in cells if not c[keys.index(row.metric)]), None)
        if line is None:
            cells.append(line := [""] * len(keys))
        difference = f" ({ours[row.metric] - row.value:+.2f})" if not other and row.metric in ours else ""
        line[keys.index(row.metric)] = f"{row.value:g}{difference}"
    return [
        ([f"reported: {source} ({f'{other}; ' if other else ''}{verified})", "", *line], bool(other))
        for (other, source, verified, _), cells in lines.items()
        for line in cells
    ]


def listing(dataset: str, protocol: str | None) -> str:
    """All published numbers of a data set, of one protocol if it is named, as text."""
    rows = of_dataset(dataset)
    if not rows:
        known = ", ".join(sorted({row.dataset for row in table()}))
        raise UserError(f"--reported {shown(dataset)}: no published number of that data set; known: {known}")
    if protocol:
        name = protocol.partition("/")[0]
        protocols.content(name)
        rows = [
            r for r in rows if r.protocol == protocol or ("/" not in protocol and r.protocol.partition("/")[0] == name)
        ]
        if not rows:
            raise UserError(f"--reported {shown(dataset)}: no published number under protocol {shown(protocol)}")
    values: dict[tuple, set[float]] = {}
    for row in rows:
        values.setdefault(row[:5], set()).add(row.value)
    lines = [["method", "protocol", "metric", "value", "", "verified", "source", "setting"]]
    for row in sorted(rows, key=lambda r: (r.protocol, r.metric, r.method, r.value)):
        clash = "sources differ" if row.protocol and len(values[row[:5]]) > 1 else ""
        text = [row.method, row.protocol or "-", row.metric, f"{row.value:g}", clash]
        lines.append([*text, row.verified, row.source, "" if row.protocol else row.setting[:60]])
    return format_table(lines)
