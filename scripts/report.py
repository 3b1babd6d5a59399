"""One page about all runs under a folder: tables over seeds, curves, heat maps and the other figures of each run.

    python scripts/report.py                       # runs/ -> runs/report.html, and the tables on the terminal
    python scripts/report.py sweeps/a --out a.html
    python scripts/report.py --reported seq-cifar100 --protocol c3box    # published numbers alone, without any run

Runs that differ only in their seeds are one row: mean, and half the 95 % interval where there are three or more. A
table holds one protocol (its hash and the flags given against it) and one set of weights: nothing is averaged or set in
bold across them. Published numbers stand below ours, with the difference where protocol and weights are the same.
The page is a single self-contained file. Records are only read; a run without an end is listed as unfinished.
"""

import argparse
import base64
import io
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts import records, reported
from scripts.records import interval
from utils import json_text
from utils.cli import shell
from utils.engine.record import VOLATILE, VOLATILE_PREFIX, format_table
from utils.engine.report import human, mean_seen, ordered_titles, title_of
from utils.errors import UserError, disk_errors
from utils.escape import clean, in_html, on_figure

SEEDS = {"seed", "picture_seed", "class_order_seed", "class_order"}  # runs that differ only in these are repeats
SHORT = [
    "class_il_last",
    "class_il_avg",
    "class_il_last_images",
    "class_il_avg_images",
    "class_il_forgetting",
    "vqa_last",
    "vqa_avg",
    "vqa_forgetting",
    "mtil_transfer",
    "mtil_avg",
    "mtil_last",
    "odcl_transfer",
    "odcl_avg",
    "odcl_last",
    "ci_transfer",
    "ci_harmonic",
    "stored_bytes",
    "wall_s",
]  # columns on the terminal; the page shows all
PLACES = {"base_path", "device"}  # where a run is stored; not shown in its name
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0;display:block;overflow-x:auto}
td,th{padding:.25em .7em;text-align:right;border-bottom:1px solid #ddd}
td{white-space:nowrap}
td:first-child,th:first-child{text-align:left;white-space:normal;min-width:17em}
td:first-child,th:first-child{position:sticky;left:0;background:#fff}
img{max-width:100%}figure{display:inline-block;margin:.5em;vertical-align:top}
.best{font-weight:bold}.grey{color:#999}
figcaption{font-size:.85em;color:#666}summary{cursor:pointer}code{background:#f4f4f4;padding:0 .2em}"""


def load(folder: Path) -> tuple[list[records.Run], list[str]]:
    """All runs below a folder, oldest first, and the errors of those that could not be read."""
    return records.load(folder, ("model", "dataset"))


def kind_of(run: records.Run) -> str:
    """Same text = same configuration but for seeds."""
    args = {
        k: v for k, v in run.args.items() if k not in SEEDS and k not in VOLATILE and not k.startswith(VOLATILE_PREFIX)
    }
    return json.dumps([args, table_of(run)], sort_keys=True)


def table_of(run: records.Run) -> list:
    """What the runs of one table share: protocol, hash, deviations, weights."""
    preset, weights = reported.preset_of(run), reported.weights_of(run) if run.start.get("weights_sha256") else ""
    deviations = json.dumps(preset.get("deviations") or {}, sort_keys=True)
    return [preset.get("name") or "", preset.get("sha256") or "", deviations, weights, run.start.get("weights_sha256")]


def heading_of(run: records.Run) -> str:
    """One line about the table of a run."""
    name, sha256, deviations, weights, digest = table_of(run)
    parts = [f"protocol {name} {sha256}" if name else "no protocol"]
    if deviations != "{}":
        parts.append(f"but {', '.join(f'--{flag}' for flag in json_text.parse(deviations))}")
    if digest:
        parts.append(f"weights {weights} {str(digest)[:12]}")
    return clean("; ".join(parts))


APART = (
    "Each table holds one protocol and one set of weights: nothing is averaged or marked as best across tables, since "
    "numbers of different protocols or weights do not compare."
)
LOWER = ("forgetting", "ece", "bytes", "forwards", "wall_s", "drop", "gap")  # ends of scores that are better when lower


def name_of(run: records.Run) -> str:
    """--notes, or the method and the flags of its command."""
    if run.args.get("notes"):
        return clean(run.args["notes"])
    hidden = {"model", "dataset"} | SEEDS | PLACES | set(VOLATILE)
    words, keep = [], True
    for word in run.start.get("argv", []):
        if word.startswith("--"):
            keep = word[2:].partition("=")[0].replace("-", "_") not in hidden
        if keep:
            words.append(word)
    return clean(" ".join([run.args["model"], *words]))


def tables(arms: list[list[records.Run]]) -> list[list[list[records.Run]]]:
    """The arms of a data set by table: those of one protocol and one set of weights."""
    found: dict[str, list[list[records.Run]]] = {}
    for arm in arms:
        found.setdefault(json.dumps(table_of(arm[0])), []).append(arm)
    return list(found.values())


def grouped(runs: Iterable[records.Run]) -> dict[str, list[list[records.Run]]]:
    """dataset -> arms -> finished runs, the latest of each seed."""
    arms: dict[str, dict[str, dict]] = {}
    for run in runs:
        if run.summary is not None:
            arms.setdefault(run.args["dataset"], {}).setdefault(kind_of(run), {})[run.seed] = run
    return {dataset: [list(seeds.values()) for seeds in kinds.values()] for dataset, kinds in sorted(arms.items())}


def columns_of(arms: list[list[records.Run]], wanted: Iterable[str] | None = None) -> list[str]:
    """Scores that any arm has, the protocol's own weighting first; those of probes, named by a command, at the end."""
    present = {k for arm in arms for run in arm for k in run.summary}
    order = ordered_titles(arms[0][0].args)
    keys = [k for k in order if k in present and (wanted is None or k in set(wanted))]
    probes = sorted(k for k in present if k.startswith("probe_"))
    return keys + [k for k in probes if wanted is None or not re.search(r"_r(1|5|10)_", k)]


def rows_of(arms: list[list[records.Run]], columns: Iterable[str] | None = None) -> list[list[str]]:
    """Head and rows: one column per score that any arm has."""
    keys = columns_of(arms, columns)
    rows = [["method", "seeds", *map(title_of, keys)]]
    for arm in arms:
        cells = []
        for key in keys:
            values = [run.summary[key] for run in arm if key in run.summary]
            spread = (
                f" ± {interval(values):.1f}"
                if len(values) > 2 and not key.endswith(("bytes", "forwards", "wall_s"))
                else ""
            )
            cells.append(human(key, float(np.mean(values))) + spread if values else "")
        rows.append([name_of(arm[0]), str(len(arm)), *cells])
    return rows


def means_of(arm: list[records.Run]) -> dict[str, float]:
    keys = {k for run in arm for k in run.summary}
    return {k: float(np.mean([run.summary[k] for run in arm if k in run.summary])) for k in keys}


def best_of(arms: list[list[records.Run]], keys: list[str]) -> dict[str, set[int]]:
    """Score -> the arms that are best, of a table with several."""
    means = [means_of(arm) for arm in arms]
    best = {}
    for key in keys:
        values = {n: mean[key] for n, mean in enumerate(means) if key in mean}
        if len(values) > 1:
            top = (min if key.endswith(LOWER) else max)(values.values())
            best[key] = {n for n, value in values.items() if value == top}
    return best


def lines_of(
    arms: list[list[records.Run]], columns: Iterable[str] | None = None
) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of a table with published numbers below each arm, and the class of each cell: best, grey or empty."""
    keys, rows = columns_of(arms, columns), rows_of(arms, columns)
    best = best_of(arms, keys)
    lines, marks = [rows[0]], [[""] * len(rows[0])]
    for number, (arm, row) in enumerate(zip(arms, rows[1:], strict=True)):
        lines.append(row)
        marks.append(["", "", *("best" if number in best.get(key, ()) else "" for key in keys)])
        for cells, grey in reported.rows_beside(arm[0], means_of(arm), keys):
            lines.append([clean(cell) for cell in cells])
            marks.append(["grey" if grey else ""] * len(cells))
    return lines, marks


def on_terminal(lines: list[list[str]], marks: list[list[str]]) -> list[list[str]]:
    """The same as text: * marks the best of a table."""
    return [
        [f"{cell} *" if mark == "best" else cell for cell, mark in zip(line, own, strict=True)]
        for line, own in zip(lines, marks, strict=True)
    ]


def curve(run: records.Run) -> list[float]:
    """Mean score over the tasks seen, after each task; over their images where the run counts these."""
    images = run.args.get("accuracy_weighting") == "images"
    some = [len(row["scores"]["class_il"]) for row in run.tasks if "class_il" in row["scores"]]
    rows = [
        row if row["scores"] else row | {"scores": {"class_il": [np.nan] * some[0]}}  # not evaluated: a gap
        for row in run.tasks
        if some and (not row["scores"] or "class_il" in row["scores"])
    ]
    if images:
        filled = [[np.nan if v is None else v for v in row["scores"]["class_il"]] for row in rows]
        return [float(mean_seen(row, values, True)) for row, values in zip(rows, filled, strict=True)]
    seen = [row["scores"]["class_il"][: row["task"] + 1] for row in rows]
    return [float(np.mean([np.nan if v is None else v for v in values])) for values in seen]


def probe_curves(arm: list[records.Run]) -> dict[str, list[list[float]]]:
    """Probe -> for each run its percent before and after each task."""
    found: dict[str, list[list[float]]] = {}
    for run in arm:
        rows = [row for row in run.tasks if row.get("probes")]
        for name in rows[0]["probes"] if rows else ():
            values = [rows[0].get("probes_untouched", {}).get(name), *(row["probes"].get(name) for row in rows)]
            found.setdefault(name, []).append([np.nan if v is None else v for v in values])
    return found


def curves(arms: list[list[records.Run]]) -> bytes | None:
    """Plot of `curve` for each arm, mean over seeds; None if no arm has two tasks."""
    lines = [(name_of(arm[0]), [curve(run) for run in arm]) for arm in arms]
    return drawn(lines, 1, "tasks seen", "mean score over them (%)")


def probe_plot(arms: list[list[records.Run]]) -> bytes | None:
    """Plot of the probes of all arms: their percent before the first task and after each; None without any."""
    lines = [
        (f"{name_of(arm[0])}: {name}", found)
        for arm in arms
        for name, found in probe_curves(arm).items()
        if not name.endswith(("_r5", "_r10"))
    ]
    return drawn(lines, 0, "tasks trained", "probe (%)")


def drawn(lines: list[tuple[str, list[list[float]]]], start: int, below: str, beside: str) -> bytes | None:
    """Lines of (name, values of each seed): mean, and the range over seeds as a band; None if none has two values."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [(name, found) for name, found in lines if len(found[0]) > 1 and len({len(f) for f in found}) == 1]
    if not lines:
        return None
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for number, (name, found) in enumerate(lines):
        middle, tasks = np.mean(found, axis=0), np.arange(start, start + len(found[0]))
        axes.plot(
            tasks,
            middle,
            marker="o",
            markersize=3,
            linestyle=["-", "--", ":"][number // 10 % 3],
            label=on_figure(name, 60),
        )
        if len(found) > 1:
            axes.fill_between(tasks, np.min(found, axis=0), np.max(found, axis=0), alpha=0.12)
    axes.set(xlabel=below, ylabel=beside, ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    return buffer.getvalue()


def picture(data: bytes, caption: str) -> str:
    coded = base64.b64encode(data).decode()
    return (
        f'<figure><img alt="{in_html(caption)}" src="data:image/png;base64,{coded}">'
        f"<figcaption>{in_html(caption)}</figcaption></figure>"
    )


def table(rows: list[list[str]], marks: list[list[str]] | None = None) -> str:
    marks = marks or [[""] * len(row) for row in rows]

    def line(cells: list[str], tag: str, classes: list[str]) -> str:
        words = (
            f"<{tag}{f' class={c}' if c else ''}>{in_html(v)}</{tag}>" for v, c in zip(cells, classes, strict=True)
        )
        return "<tr>" + "".join(words) + "</tr>"

    body = (line(row, "td", classes) for row, classes in zip(rows[1:], marks[1:], strict=True))
    return "<table>" + line(rows[0], "th", marks[0]) + "".join(body) + "</table>"


def section(dataset: str, arms: list[list[records.Run]]) -> str:
    parts = [f"<h2>{in_html(dataset)}</h2>"]
    for group in tables(arms):
        parts += [f"<h3>{in_html(heading_of(group[0][0]))}</h3>", table(*lines_of(group))]
        for image, caption in (
            (curves(group), "mean over seeds; the band is the range over seeds"),
            (probe_plot(group), "probes outside the stream: 0 is the untouched model"),
        ):
            if image:
                parts.append(picture(image, caption))
    for arm in arms:
        run = arm[-1]
        commit, command = run.start.get("git_commit") or "", " ".join(["python main.py", *run.start.get("argv", [])])
        pictures = [picture(p.read_bytes(), p.stem.replace("_", " ")) for p in sorted(run.folder.glob("*.png"))]
        parts.append(
            f"<details><summary>{in_html(name_of(run))}, seed {in_html(run.seed)}</summary>"
            f"<p><code>{in_html(command)}</code> "
            f"{in_html(str(commit)[:12])}<br>{in_html(str(run.folder))}</p>{''.join(pictures)}</details>"
        )
    return "\n".join(parts)


def page(groups: dict[str, list[list[records.Run]]], unfinished: list[records.Run], broken: list[str]) -> str:
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Runs</title><style>{STYLE}</style><h1>Runs</h1>",
        "<p>Scores in percent, ± half the 95 % interval over seeds. Class-il: accuracy among all names seen so "
        "far; task-il: among those of the image's own task. Bold: the best of a table. Grey: published numbers whose "
        f"protocol or weights are others.</p><p>{APART}</p>",
    ]
    parts += [section(dataset, arms) for dataset, arms in groups.items()]
    if unfinished:
        rows = [["not finished", "seed", "tasks done", "folder"]]
        rows += [
            [f"{name_of(r)} on {r.args['dataset']}", str(r.seed), str(len(r.tasks)), str(r.folder)] for r in unfinished
        ]
        parts.append(table(rows))
    parts += [f"<p>Not readable, left out: {in_html(line)}</p>" for line in broken]
    return "\n".join(parts) + "</html>\n"


def print_reported(dataset: str | None, protocol: str | None) -> int:
    """--reported: published numbers without any run."""
    try:
        if not dataset:
            raise UserError("--protocol needs --reported DATASET")
        print(reported.listing(dataset, protocol))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("runs"), help="a --results_path (default runs)")
    parser.add_argument("--out", type=Path, help="the page (default: report.html in that folder)")
    parser.add_argument("--reported", metavar="DATASET", help="print the published numbers of a data set, and exit")
    parser.add_argument("--protocol", help="with --reported: those under one protocol")
    args = parser.parse_args(argv)
    if args.reported or args.protocol:
        return print_reported(args.reported, args.protocol)
    runs, broken = load(args.results)
    for line in broken:
        print(f"not readable, left out: {line}", file=sys.stderr)
    if not runs:
        print(
            f"error: no usable record.jsonl below {args.results}; give the --results_path of your runs",
            file=sys.stderr,
        )
        return 2
    groups = grouped(runs)
    for dataset, arms in groups.items():
        for group in tables(arms):
            print(f"{clean(dataset)}: {heading_of(group[0][0])}")
            print(f"{format_table(on_terminal(*lines_of(group, SHORT)))}\n")
    if groups:
        print(f"* best of a table. {APART}")
    out = args.out or args.results / "report.html"
    try:
        with disk_errors(out, "choose another --out"):
            out.write_text(page(groups, [r for r in runs if r.summary is None], broken), encoding="utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(shell.exits(main))
