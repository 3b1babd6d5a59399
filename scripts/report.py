"""One page about all runs under a folder: tables over seeds, curves, heat maps and the other figures of each run.

    python scripts/report.py                       # runs/ -> runs/report.html, and the tables on the terminal
    python scripts/report.py sweeps/a --out a.html

Runs that differ only in their seeds are one row: mean, and half the 95 % interval where there are three or more. The
page is a single self-contained file. Records are only read; a run without an end is listed as unfinished.
"""

import argparse
import base64
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts import records
from scripts.records import interval
from utils.cli import shell
from utils.engine.record import VOLATILE, VOLATILE_PREFIX, format_table
from utils.engine.report import TITLES, human
from utils.errors import UserError, disk_errors
from utils.escape import clean, in_html, on_figure

SEEDS = {"seed", "picture_seed", "class_order_seed", "class_order"}  # runs that differ only in these are repeats
SHORT = [
    "class_il_last",
    "class_il_avg",
    "class_il_forgetting",
    "vqa_last",
    "vqa_avg",
    "vqa_forgetting",
    "mtil_transfer",
    "mtil_avg",
    "mtil_last",
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
figcaption{font-size:.85em;color:#666}summary{cursor:pointer}code{background:#f4f4f4;padding:0 .2em}"""


def load(folder: Path) -> tuple[list[records.Run], list[str]]:
    """All runs below a folder, oldest first, and the errors of those that could not be read."""
    return records.load(folder, ("model", "dataset"))


def kind_of(run: records.Run) -> str:
    """Same text = same configuration but for seeds."""
    args = {
        k: v for k, v in run.args.items() if k not in SEEDS and k not in VOLATILE and not k.startswith(VOLATILE_PREFIX)
    }
    return json.dumps(args, sort_keys=True)


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


def grouped(runs: Iterable[records.Run]) -> dict[str, list[list[records.Run]]]:
    """dataset -> arms -> finished runs, the latest of each seed."""
    arms: dict[str, dict[str, dict]] = {}
    for run in runs:
        if run.summary is not None:
            arms.setdefault(run.args["dataset"], {}).setdefault(kind_of(run), {})[run.seed] = run
    return {dataset: [list(seeds.values()) for seeds in kinds.values()] for dataset, kinds in sorted(arms.items())}


def rows_of(arms: list[list[records.Run]], columns: Iterable[str] = TITLES) -> list[list[str]]:
    """Head and rows: one column per score that any arm has."""
    keys = [k for k in columns if any(k in run.summary for arm in arms for run in arm)]
    rows = [["method", "seeds", *(TITLES[k] for k in keys)]]
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


def curve(run: records.Run) -> list[float]:
    """Mean score over the tasks seen, after each task."""
    seen = [row["scores"]["class_il"][: row["task"] + 1] for row in run.tasks if "class_il" in row["scores"]]
    return [float(np.mean([np.nan if v is None else v for v in values])) for values in seen]


def curves(arms: list[list[records.Run]]) -> bytes | None:
    """Plot of `curve` for each arm, mean over seeds; None if no arm has two tasks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [(name_of(arm[0]), [curve(run) for run in arm]) for arm in arms]
    lines = [(name, found) for name, found in lines if len(found[0]) > 1 and len({len(f) for f in found}) == 1]
    if not lines:
        return None
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for number, (name, found) in enumerate(lines):
        middle, tasks = np.mean(found, axis=0), np.arange(1, len(found[0]) + 1)
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
    axes.set(xlabel="tasks seen", ylabel="mean score over them (%)", ylim=(0, 102))
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


def table(rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{in_html(c)}</{tag}>" for c in cells) + "</tr>"

    return "<table>" + line(rows[0], "th") + "".join(line(r, "td") for r in rows[1:]) + "</table>"


def section(dataset: str, arms: list[list[records.Run]]) -> str:
    parts = [f"<h2>{in_html(dataset)}</h2>", table(rows_of(arms))]
    drawn = curves(arms)
    if drawn:
        parts.append(picture(drawn, "mean over seeds; the band is the range over seeds"))
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
        "far; task-il: among those of the image's own task.</p>",
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("runs"), help="a --results_path (default runs)")
    parser.add_argument("--out", type=Path, help="the page (default: report.html in that folder)")
    args = parser.parse_args(argv)
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
        print(f"{clean(dataset)}\n{format_table(rows_of(arms, SHORT))}\n")
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
