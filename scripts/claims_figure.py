"""The figure of a page of claims: one panel per entry of `figure` in the table.

{kind: curves, score: class_il, arms: [..], world: name, over: seen|all}   mean score after each task, 95 % bands
{kind: bars, measure: column, arms: [..], worlds: [..]}                    one bar per arm and group of worlds
{kind: against, x: column, y: column, lines: {name: [arms]}, world: name}  one line per name, one point per arm
also: title, xlabel, ylabel
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scripts.claims_table import Job, Table
from scripts.records import Run, interval
from utils.escape import on_figure

Scores = dict[tuple[str, str], dict[int, dict[str, float]]]


def curve_of(run: Run, score: str, over: str) -> list[float]:
    """Mean of a score after each task: over the tasks seen by then, or over all."""
    rows = [(task["task"], task["scores"].get(score)) for task in run.tasks]
    return [
        np.nan if not row or None in (cut := row if over == "all" else row[: t + 1]) else float(np.mean(cut))
        for t, row in rows
    ]


def half(values: Iterable[float]) -> float:
    return float(np.nan_to_num(interval(list(values))))


def curves(axes: Any, spec: dict, table: Table, jobs: list[Job], runs: Mapping[str, Run], scores: Scores) -> bool:
    members = table.groups.get(str(spec.get("world", "")), next(iter(table.groups.values())))
    members = (str(spec["world"]),) if str(spec.get("world")) in table.worlds else members
    for number, arm in enumerate(spec.get("arms") or table.arms):
        by_seed: dict[int, list[list[float]]] = {}
        for job in jobs:
            if job.arm == arm and job.world in members and job.config in runs:
                found = curve_of(runs[job.config], spec.get("score", "class_il"), spec.get("over", "seen"))
                by_seed.setdefault(job.seed, []).append(found)
        lines = [np.mean(own, axis=0) for own in by_seed.values() if len(own) == len(members)]
        if not lines or len({len(line) for line in lines}) > 1:
            continue
        middle, tasks = np.mean(lines, axis=0), np.arange(1, len(lines[0]) + 1)
        look = {"color": f"C{number % 10}", "linestyle": ["-", "--", ":"][number // 10 % 3]}
        axes.plot(tasks, middle, marker="o", markersize=3, label=on_figure(arm, 60), **look)
        if len(lines) > 1:
            width = np.array([half(column) for column in np.stack(lines, 1)])
            axes.fill_between(tasks, middle - width, middle + width, alpha=0.15, color=look["color"], linewidth=0)
    axes.set(
        xlabel="tasks trained",
        ylabel=f"{spec.get('score', 'class_il')}, mean over {spec.get('over', 'seen')} tasks (%)",
    )
    return bool(axes.lines)


def bars(axes: Any, spec: dict, table: Table, jobs: list[Job], runs: Mapping[str, Run], scores: Scores) -> bool:
    groups = [g for g in spec.get("worlds") or table.groups if g in table.groups]
    arms = [a for a in spec.get("arms") or table.arms if any((a, g) in scores for g in groups)]
    column = spec.get("measure") or next(iter(table.measures))
    height = 0.8 / max(1, len(groups))
    for number, group in enumerate(groups):
        for place, arm in enumerate(arms):
            values = [row[column] for row in scores.get((arm, group), {}).values() if column in row]
            if not values:
                continue
            at = place + (number - (len(groups) - 1) / 2) * height
            named = axes.get_legend_handles_labels()[1]
            text = on_figure(group, 60)
            label = text if len(groups) > 1 and text not in named else None
            axes.barh(at, np.mean(values), height, xerr=half(values), color=f"C{number}", label=label, capsize=2)
            axes.plot(values, [at] * len(values), "k.", markersize=2)
    axes.set_yticks(range(len(arms)), [on_figure(arm, 60) for arm in arms])
    axes.invert_yaxis()
    axes.set_xlabel(column)
    return bool(axes.patches)


def against(axes: Any, spec: dict, table: Table, jobs: list[Job], runs: Mapping[str, Run], scores: Scores) -> bool:
    group = str(spec.get("world") or next(iter(table.groups)))
    x, y = (spec.get(k) or list(table.measures)[i] for i, k in enumerate("xy"))
    for number, (name, arms) in enumerate((spec.get("lines") or {"": list(table.arms)}).items()):
        points = []
        for arm in arms:
            rows = [row for row in scores.get((arm, group), {}).values() if x in row and y in row]
            if rows:
                points.append([np.mean([r[x] for r in rows]), np.mean([r[y] for r in rows]), half(r[y] for r in rows)])
        if points:
            at, middle, width = np.array(sorted(points)).T
            axes.errorbar(
                at,
                middle,
                width,
                marker="o",
                markersize=4,
                capsize=2,
                color=f"C{number % 10}",
                label=on_figure(name, 60),
            )
    axes.set(xlabel=x, ylabel=y)
    return bool(axes.lines)


PANELS = {"curves": curves, "bars": bars, "against": against}


def draw(table: Table, jobs: list[Job], runs: Mapping[str, Run], scores: Scores, path: Path) -> bool:
    """Write the PNG; False if no panel has anything to show."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not table.figures or not scores:
        return False
    tallest = max(len(spec.get("arms") or table.arms) if spec["kind"] == "bars" else 0 for spec in table.figures)
    figure = Figure(figsize=(6.4 * len(table.figures), max(4.4, 0.32 * tallest + 1)), layout="constrained")
    shown = False
    for axes, spec in zip(np.ravel(figure.subplots(1, len(table.figures))), table.figures, strict=True):
        some = PANELS[spec["kind"]](axes, spec, table, jobs, runs, scores)
        shown = shown or some
        for key in ("title", "xlabel", "ylabel"):
            if spec.get(key):
                axes.set(**{key: on_figure(spec[key])})
        axes.grid(alpha=0.3)
        if some and axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=7)
    if shown:
        path.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure).print_png(str(path))
    return shown
