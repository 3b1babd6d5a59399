"""Writes docs/table.md from the records of `scripts/sweep.py protocol:tiny`: scores, costs, and how orders agree.

    python scripts/sweep.py protocol:tiny           first, once or in parts; a grid of one's own has other methods
    python scripts/table_page.py [RESULTS ...]      then the page of what is there

The order of methods on one stream is compared with that on the others, and with published numbers of one data set,
protocol and set of weights each (datasets/protocols/reported.csv), by Spearman's rho and Kendall's tau.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy.stats import kendalltau, spearmanr

from scripts import reported
from scripts.records import Run, averages, finished, markdown, spread
from utils import cli
from utils.cli import registry, shell
from utils.errors import UserError

PAGE = registry.ROOT / "docs" / "table.md"
RESULTS = registry.ROOT / "runs" / "paper_table" / "tiny"
DATA_SETS = ("seq-cifar100", "seq-imagenet-r")  # whose published orders are compared
METRIC = "class_il_last_images"
LEAST = 4  # methods below which an order says nothing
HEAD = """# The methods on the picture world

Runs on {streams} (`python scripts/sweep.py protocol:tiny`, or a grid), then `python scripts/table_page.py`, which
writes this page. Commits: {commits}. Mean over seeds, ± half of the 95 % interval (Student's t) from two seeds on.
Scores compare mechanisms on this world ([tiny_world.md](tiny_world.md)); the last table says whether they order methods
as real data does.

*stored*: MiB that a method keeps between tasks beside its network. *trained*: parameters that require a gradient in
the task where they are most. *seconds*: begin_task, training and end_task of all tasks, with what else the machine did.
*images/s*: test images scored per second of evaluation.

"""


def first_of(*keys: str) -> Callable[[Run, Mapping[str, float]], float | None]:
    """The first of these scores that a run has."""
    return lambda run, scores: next((scores[key] for key in keys if key in scores), None)


def stored(run: Run, scores: Mapping[str, float]) -> float | None:
    return None if "stored_bytes" not in scores else scores["stored_bytes"] / 2**20


def trained(run: Run, scores: Mapping[str, float]) -> float | None:
    counts = [task["parameters"]["trainable"] for task in run.tasks if "parameters" in task]
    return max(counts, default=None)


def seconds(run: Run, scores: Mapping[str, float]) -> float | None:
    phases = [task["seconds"] for task in run.tasks if "seconds" in task]
    return sum(row.get(part) or 0 for row in phases for part in ("begin_task", "train", "end_task")) if phases else None


def images_per_second(run: Run, scores: Mapping[str, float]) -> float | None:
    rows = [task for task in run.tasks if task.get("test_images") and (task.get("seconds") or {}).get("evaluate")]
    spent = sum(task["seconds"]["evaluate"] for task in rows)
    return sum(n or 0 for task in rows for n in task["test_images"]) / spent if spent else None


COLUMNS = {
    "last": first_of("vqa_last", "mtil_last", METRIC, "class_il_last"),
    "average": first_of("vqa_avg", "mtil_avg", "class_il_avg_images", "class_il_avg"),
    "forgetting": first_of("vqa_forgetting", "class_il_forgetting", "task_il_forgetting"),
    "transfer": first_of("mtil_transfer", "ci_transfer"),
    "unseen names": first_of("future_unseen", "xtail_transfer"),
    "stored": stored,
    "trained": trained,
    "seconds": seconds,
    "images/s": images_per_second,
}
Values = dict[str, list[float]]  # column -> a value per seed


def streams_of(runs: Iterable[Run]) -> dict[str, dict[str, Values]]:
    """Stream with its protocol -> method -> columns; of a seed that was run again the latest counts."""
    latest: dict[tuple, Run] = {}
    for run in runs:
        protocol = reported.preset_of(run).get("name", "")
        stream = f"{run.args['dataset']} ({protocol})" if protocol else run.args["dataset"]
        latest[stream, run.args["model"], run.seed] = run
    found: dict[str, dict[str, Values]] = {}
    for (stream, model, _), run in latest.items():
        scores = averages(run.tasks) | (run.summary or {})
        values = found.setdefault(stream, {}).setdefault(model, {column: [] for column in COLUMNS})
        for column, read in COLUMNS.items():
            if (value := read(run, scores)) is not None:
                values[column].append(value)
    return found


def scores_of(methods: Mapping[str, Values]) -> dict[str, float]:
    return {name: float(np.mean(values["last"])) for name, values in methods.items() if values["last"]}


def agreement(one: Mapping[str, float], other: Mapping[str, float]) -> list[str] | None:
    """Methods, rho and tau of the order of the methods that both have; None below LEAST, or where all are equal."""
    both = sorted(set(one) & set(other))
    pairs = [one[name] for name in both], [other[name] for name in both]
    if len(both) < LEAST or any(len(set(values)) == 1 for values in pairs):
        return None
    rho, tau = spearmanr(*pairs).statistic, kendalltau(*pairs).statistic
    return [str(len(both)), f"{rho:+.2f}", f"{tau:+.2f}"]


def published() -> dict[str, dict[str, float]]:
    """Data set, protocol and weights -> method -> published final accuracy, mean where sources differ."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in reported.table():
        if row.dataset in DATA_SETS and row.metric == METRIC and row.protocol and row.weights:
            name = f"{row.dataset}, {row.protocol}, {row.weights}"
            found.setdefault(name, {}).setdefault(row.method, []).append(row.value)
    return {name: {m: float(np.mean(v)) for m, v in methods.items()} for name, methods in found.items()}


def number(values: list[float], column: str) -> str:
    if column in ("trained", "seconds", "images/s"):
        return f"{np.mean(values):,.0f}" if values else ""
    return spread(values)


def stream_table(methods: Mapping[str, Values]) -> str:
    order = sorted(methods, key=lambda name: -scores_of(methods).get(name, -1))
    shown = [column for column in COLUMNS if any(methods[name][column] for name in methods)]
    rows = [[f"`{m}`", len(methods[m]["last"]), *(number(methods[m][c], c) for c in shown)] for m in order]
    return markdown(["method", "seeds", *shown], rows)


def orders(found: Mapping[str, dict[str, Values]]) -> str:
    """Agreement between streams, and with what is published."""
    scores, rows = {stream: scores_of(methods) for stream, methods in found.items()}, []
    sides = [*combinations(scores.items(), 2)]
    sides += [(ours, theirs) for theirs in published().items() for ours in scores.items() if "seq-tiny" in ours[0]]
    for (one, left), (other, right) in sides:
        if (told := agreement(left, right)) is not None:
            rows.append([one, other, *told])
    if not rows:
        return f"No two orders share {LEAST} methods yet.\n"
    return markdown(["order of", "against", "methods", "rho", "tau"], rows)


def page(runs: list[Run]) -> str:
    found = streams_of(runs)
    commits = ", ".join(sorted({str(run.start.get("git_commit") or "unknown")[:10] for run in runs}))
    streams = " ".join(dict.fromkeys(run.args["dataset"] for run in runs))
    parts = [HEAD.format(streams=streams, commits=commits).rstrip() + "\n"]
    parts += [f"## {stream}\n\n{stream_table(methods)}" for stream, methods in sorted(found.items())]
    parts.append(
        "## Do the orders agree?\n\nOf the methods that both sides have, at least "
        f"{LEAST}. Published: *reported*, final accuracy over images under one protocol and one set of weights; +1 is "
        "the same order, 0 none, -1 the reverse.\n\n" + orders(found)
    )
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="table_page", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("results", type=Path, nargs="*", help=f"folders of records (default {RESULTS})")
    parser.add_argument("--page", type=Path, default=PAGE, help="default docs/table.md")
    args = parser.parse_args(argv)
    try:
        folders = args.results or [RESULTS]
        runs = [run for folder in folders for run in finished(folder)]
        if not runs:
            raise UserError(
                f"no finished run below {', '.join(map(str, folders))}: python scripts/sweep.py protocol:tiny"
            )
        args.page.write_text(page(runs), encoding="utf-8")
    except UserError as error:
        return cli.fail(error)
    print(f"{args.page} written")
    return 0


if __name__ == "__main__":
    sys.exit(shell.exits(main))
