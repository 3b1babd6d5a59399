"""The tables as text for a paper or a program: Markdown, LaTeX, CSV and JSON, from the same rows as the page."""

import csv
import io
import json
from collections.abc import Sequence

import numpy as np

from scripts.records import markdown
from scripts.reporting.arms import one_task
from scripts.reporting.columns import SPREADS, cell, group_of, heading, less_is_better, width
from scripts.reporting.details import command_of
from scripts.reporting.rows import Row, Table
from utils.escape import clean, in_markdown

LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
}
PREAMBLE = r"% \usepackage[utf8]{inputenc} \usepackage[T1]{fontenc} \usepackage{booktabs} \usepackage{xcolor}"


def in_latex(text: object) -> str:
    """Text that LaTeX shows as it is; a character that pdfLaTeX's fonts lack is named by its number."""
    shown = (
        LATEX.get(c) or (c if c.isascii() or "\u00c0" <= c <= "\u017f" and c not in "×÷ſ" else f"U+{ord(c):04X}")
        for c in clean(text)
    )
    return "".join(shown)


def as_markdown(tables: Sequence[Table], kind: str) -> str:
    parts = []
    for found in tables:
        best, rows = found.best, []
        for n, row in enumerate(found.rows):
            texts = {key: cell(key, list(row.values[key].values()), kind) for key in found.keys}
            marked = [f"**{texts[key]}**" if n in best.get(key, ()) else texts[key] for key in found.keys]
            rows.append([row.full, len(row.arm), *marked])
            rows += [
                [f"{label}{'' if same else ' (not comparable)'}", "", *cells] for label, cells, same in row.reported
            ]
        head = ["method", "seeds", *map(heading, found.keys)]
        parts.append(f"## {in_markdown(found.dataset)}\n\n{in_markdown(found.heading)}\n\n{markdown(head, rows)}")
    return "\n".join(parts) + f"\nMean over seeds ± {SPREADS[kind]}. Bold: the best of a table.\n"


def as_latex(tables: Sequence[Table], kind: str) -> str:
    """A tabular per table; what the document needs stands above the first."""
    parts = [PREAMBLE, f"% mean over seeds, plus or minus {SPREADS[kind]}; bold: the best of a table"]
    for found in tables:
        best, lines = found.best, []
        for n, row in enumerate(found.rows):
            texts = [in_latex(cell(key, list(row.values[key].values()), kind)) for key in found.keys]
            marked = [
                rf"\textbf{{{text}}}" if n in best.get(key, ()) else text
                for key, text in zip(found.keys, texts, strict=True)
            ]
            lines.append([in_latex(row.full), str(len(row.arm)), *marked])
            for label, cells, same in row.reported:
                texts = [in_latex(label), "", *map(in_latex, cells)]
                lines.append([t if same or not t else rf"\textcolor{{gray}}{{{t}}}" for t in texts])
        head = ["method", "seeds", *(in_latex(heading(key)) for key in found.keys)]
        body = "\n".join(f"{' & '.join(line)} \\\\" for line in lines)
        parts.append(
            f"% {in_latex(found.dataset)}: {in_latex(found.heading)}\n"
            f"\\begin{{tabular}}{{l{'r' * (len(found.keys) + 1)}}}\n\\toprule\n{' & '.join(head)} \\\\\n\\midrule\n"
            f"{body}\n\\bottomrule\n\\end{{tabular}}"
        )
    return "\n\n".join(parts) + "\n"


def as_csv(tables: Sequence[Table], kind: str) -> str:
    """A line per arm and published line; two columns per score, its mean and its spread."""
    keys = list(dict.fromkeys(key for found in tables for key in found.keys))
    names = [name for key in keys for name in (key, *([f"{key}_{kind}"] if group_of(key) != "cost" else []))]
    file = io.StringIO()
    writer = csv.DictWriter(
        file, ["dataset", "table", "method", "name", "flags", "seeds", "reported", *names], lineterminator="\n"
    )
    writer.writeheader()
    for found in tables:
        place = {"dataset": clean(found.dataset), "table": found.heading}
        for row in found.rows:
            method = {"method": clean(row.arm[-1].args["model"]), "name": row.name, "flags": row.flags}
            values = {k: list(v.values()) for k, v in row.values.items() if v}
            means = {k: f"{np.mean(v):.6g}" for k, v in values.items()}
            halves = {f"{k}_{kind}": width(v, kind) for k, v in values.items() if group_of(k) != "cost"}
            halves = {k: f"{v:.6g}" for k, v in halves.items() if not np.isnan(v)}
            writer.writerow(
                {n: plain(v) for n, v in (place | method | {"seeds": len(row.arm)} | means | halves).items()}
            )
            for label, cells, same in row.reported:
                told = {k: text.partition(" ")[0] for k, text in zip(found.keys, cells, strict=True)}
                source = f"{label}{'' if same else ' (not comparable)'}"
                writer.writerow({n: plain(v) for n, v in (place | method | {"reported": source} | told).items()})
    return file.getvalue()


def plain(value: object) -> object:
    """A text that a spreadsheet would take for a formula is quoted."""
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@")) and not is_number(value) else value


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def row_json(found: Table, number: int, row: Row) -> dict:
    scores = {}
    for key in found.keys:
        values = row.values[key]
        if values:
            halves = {kind: width(list(values.values()), kind) for kind in SPREADS}
            scores[key] = {
                "mean": float(np.mean(list(values.values()))),
                **{kind: None if np.isnan(half) else half for kind, half in halves.items()},
                "by_seed": {str(seed): value for seed, value in values.items()},
                "best": number in found.best.get(key, ()),
            }
    reported = [
        {"source": label, "comparable": same, "values": {k: c for k, c in zip(found.keys, cells, strict=True) if c}}
        for label, cells, same in row.reported
    ]
    return {
        "method": clean(row.arm[-1].args["model"]),
        "name": row.name,
        "flags": row.flags,
        "one_task": one_task(row.arm[-1]),
        "scores": scores,
        "reported": reported,
        "runs": [{"seed": run.seed, "folder": clean(run.folder), "command": command_of(run)} for run in row.arm],
    }


def as_json(tables: Sequence[Table], kind: str) -> str:
    """Everything, with both spreads and the values of each seed."""
    found = [
        {
            "dataset": clean(table.dataset),
            "table": table.heading,
            "columns": {
                k: {"title": heading(k), "group": group_of(k), "less_is_better": less_is_better(k)} for k in table.keys
            },
            "rows": [row_json(table, n, row) for n, row in enumerate(table.rows)],
        }
        for table in tables
    ]
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


FORMATS = {"md": as_markdown, "latex": as_latex, "csv": as_csv, "json": as_json}
EVERY_COLUMN = {"csv", "json"}  # formats for programs
