"""The report page: one file with its style, its program and its data, which asks nothing of the network.

Charts are drawn by the page's own program (scripts/reporting/*.js, about 50 kB). The libraries that were weighed, by
the size of what each page would have to hold: Plotly as PyPI's `plotly` 7.1 ships it, 4.8 MB, over the 3 MB that a page
of 200 runs may have; Bokeh 3.9, 1.3 MB, and its figures would be a second world beside the table (own theme, own
selection, canvas without text); Vega-Lite through `vl-convert-python`, a wheel of 33 MB at setup, and its program
compiles expressions with eval, which the page's content policy forbids; Observable Plot with D3, 0.5 MB, only from npm,
which a Python project would need at setup. Lines with bands, heat maps and points with a front are what a report needs;
as SVG they follow the page's colors in the dark, can be selected and read aloud, and share the table's selection.

The tables and the details of the runs are plain HTML that can be read without the program. All text of users is
escaped here or set as text by the program, and the policy lets no other program run.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from scripts import records
from scripts.reporting import payload
from scripts.reporting.arms import SHORT, one_task
from scripts.reporting.columns import GROUPS, SPREADS, group_of, heading, less_is_better, number, spread
from scripts.reporting.details import command_of, ending_of, facts_of
from scripts.reporting.rows import Table
from utils.escape import clean, in_html

FOLDER = Path(__file__).resolve().parent
PROGRAM = ("base.js", "charts.js", "heat.js", "table.js", "compare.js", "views.js")
APART = (
    "Each table holds one protocol and one set of weights: nothing is averaged or marked as best across tables, since "
    "numbers of different protocols or weights do not compare."
)
ABOUT = (
    "Scores in percent, mean over seeds. Class-il: accuracy among all names seen so far; task-il: among those of the "
    "image's own task. Bold: the best of a table; joint training on all tasks at once is an upper bound and does not "
    "compete. Grey: published numbers whose protocol or weights are others."
)


def program() -> str:
    """The page's program, in a scope of its own."""
    return "(() => {\n'use strict';\n" + "\n".join((FOLDER / name).read_text() for name in PROGRAM) + "\n})();\n"


def policy(script: str) -> str:
    """Nothing is fetched, and no program runs but ours."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )


def element(tag: str, text: object, **attributes: object) -> str:
    """An element with escaped text and attributes; `cls` is its class."""
    given = ((name.replace("cls", "class").replace("_", "-"), value) for name, value in attributes.items())
    shown = "".join(f' {name}="{in_html(value)}"' for name, value in given if value not in (None, ""))
    return f"<{tag}{shown}>{in_html(text)}</{tag}>"


def by_seed(key: str, values: dict[int | None, float]) -> str:
    """What the page shows when the pointer rests on a cell."""
    return "\n".join(f"seed {seed}: {number(key, value)}" for seed, value in values.items())


def score_cell(key: str, values: dict[int | None, float], kind: str, best: bool) -> str:
    """Mean and spread; the other kind of spread is kept for the page's switch, the seeds for the pointer."""
    if not values:
        return f'<td data-key="{in_html(key)}"></td>'
    found = list(values.values())
    mean = sum(found) / len(found)
    shown = {name: spread(key, found, name) for name in SPREADS}
    tip = in_html(by_seed(key, values)).replace(" seed ", "&#10;seed ")
    width = ""
    if any(shown.values()):
        width = f' <span class="pm" data-std="{shown["std"]}" data-ci="{shown["ci"]}">{shown[kind]}</span>'
    return (
        f'<td data-key="{in_html(key)}" data-v="{mean:.6g}" title="{tip}"{" class=best" if best else ""}>'
        f"{in_html(number(key, mean))}{width}</td>"
    )


def head_of(found: Table) -> str:
    """Two rows: the groups over their columns, and the columns as buttons that sort."""
    twins, main = found.twins, {key for key in found.keys if key in SHORT or key.startswith("probe_")}
    groups = [(group, [k for k in found.keys if group_of(k) == group]) for group in GROUPS]
    over = "".join(f'<th data-over="{g}" colspan="{len(keys)}" scope="colgroup">{g}</th>' for g, keys in groups if keys)
    cells = [
        '<th scope="col" class="name"><button type="button" data-sort="name">method</button></th>',
        '<th scope="col"><button type="button" data-sort="seeds">seeds</button></th>',
    ]
    for key in found.keys:
        tip = f"{key}: {'less' if less_is_better(key) else 'more'} is better"
        button = element("button", heading(key), type="button", data_sort=key, title=tip)
        kind = {"data-twin": key in twins, "data-more": key not in main}
        marks = "".join(f" {name}" for name, given in kind.items() if given)
        cells.append(f'<th scope="col" data-key="{in_html(key)}" data-group="{group_of(key)}"{marks}>{button}</th>')
    return f'<thead><tr class="over"><th colspan="2"></th>{over}</tr><tr>{"".join(cells)}</tr></thead>'


def rows_html(found: Table, kind: str) -> Iterable[str]:
    best = found.best
    for n, row in enumerate(found.rows):
        flags = f" {element('span', row.added, cls='flags', title=row.flags)}" if row.added else ""
        bound = f" {element('span', 'one task', cls='tag')}" if one_task(row.arm[-1]) else ""
        cells = (score_cell(k, row.values[k], kind, n in best.get(k, ())) for k in found.keys)
        seeds = ", ".join(str(run.seed) for run in row.arm)
        yield (
            f'<tr data-arm="{n}"><th scope="row" class="name">{element("span", row.name, cls="arm")}{flags}{bound}</th>'
            f'<td data-v="{len(row.arm)}" title="seeds {in_html(seeds)}">{len(row.arm)}</td>{"".join(cells)}</tr>'
        )
        for label, values, same in row.reported:
            cells = (f'<td data-key="{in_html(k)}">{in_html(v)}</td>' for k, v in zip(found.keys, values, strict=True))
            yield (
                f'<tr class="reported{"" if same else " grey"}" data-of="{n}">'
                f'<th scope="row" class="name">{in_html(label)}</th><td></td>{"".join(cells)}</tr>'
            )


def details_of(run: records.Run) -> str:
    """The facts about one run, closed until they are asked for."""
    facts = "".join(element("dt", label) + element("dd", text) for label, text in facts_of(run))
    return (
        f"<details><summary>seed {in_html(run.seed)}</summary>"
        f'<pre class="command">{in_html(command_of(run))}</pre><dl>{facts}</dl></details>'
    )


def runs_of(found: Table) -> str:
    parts = []
    for n, row in enumerate(found.rows):
        inner = "".join(details_of(run) for run in row.arm)
        parts.append(f'<details data-arm="{n}">{element("summary", row.full)}{inner}</details>')
    return (
        f'<details class="runs"><summary>Runs: commands, versions, machines, files</summary>{"".join(parts)}</details>'
    )


def section(place: int, found: Table, kind: str) -> str:
    return (
        f'<section class="card" id="table-{place}" aria-label="{in_html(found.dataset)}">'
        f"<h2>{in_html(found.dataset)} {element('small', found.heading)}</h2>"
        f'<div class="wrap" tabindex="0" role="region" aria-label="scores on {in_html(found.dataset)}">'
        f"<table>{head_of(found)}<tbody>{''.join(rows_html(found, kind))}</tbody></table></div>"
        f'<div class="views"></div>{runs_of(found)}</section>'
    )


def unfinished_html(runs: Sequence[records.Run]) -> str:
    if not runs:
        return ""
    rows = []
    for run in runs:
        status, reason = ending_of(run)
        name = f"{clean(run.args['model'])} on {clean(run.args['dataset'])}"
        rows.append(
            f"<tr>{element('th', name, scope='row', cls='name')}{element('td', run.seed)}"
            f"{element('td', status, cls=f'status {status}')}{element('td', reason, cls='text')}"
            f"{element('td', len(run.tasks))}"
            f'<td class="text"><details>{element("summary", run.folder.name)}'
            f'<pre class="command">{in_html(command_of(run))}</pre><p>{in_html(run.folder)}</p></details></td></tr>'
        )
    heads = {"run": "name", "seed": "", "status": "", "reason": "text", "tasks done": "", "folder": "text"}
    head = "".join(element("th", text, scope="col", cls=kind) for text, kind in heads.items())
    return (
        f'<section class="card" id="unfinished"><h2>Not finished <small>{len(runs)} runs</small></h2>'
        f'<div class="wrap" tabindex="0" role="region" aria-label="unfinished runs"><table class="plain"><thead><tr>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def toolbar(tables: Sequence[Table], kind: str, groups: Sequence[str]) -> str:
    """Controls of all tables; they work once the program runs."""
    present = [g for g in GROUPS if any(group_of(k) == g for found in tables for k in found.keys)]
    on = groups if len(groups) < len(GROUPS) else GROUPS[:-1]
    chips = "".join(
        f'<label class="chip"><input type="checkbox" data-group="{g}"{" checked" if g in on else ""}>{g}</label>'
        for g in present
    )
    chips += '<label class="chip"><input type="checkbox" id="every">all columns</label>'
    spreads = "".join(
        f'<label class="chip"><input type="radio" name="spread" value="{name}" title="{title}"'
        f"{' checked' if name == kind else ''}>± {'95 %' if name == 'ci' else name}</label>"
        for name, title in SPREADS.items()
    )
    links = "".join(f'<a href="#table-{place}">{in_html(found.dataset)}</a>' for place, found in enumerate(tables))
    return (
        f'<nav aria-label="tables">{links}</nav><div class="tools" role="toolbar" aria-label="what the tables show">'
        '<input type="search" id="filter" placeholder="filter methods" aria-label="filter methods">'
        f'<span class="set" role="group" aria-label="columns">{chips}</span>'
        f'<span class="set" role="group" aria-label="spread over seeds">{spreads}</span>'
        '<button type="button" id="theme" aria-label="light or dark">&#9681;</button></div>'
    )


def page(
    tables: Sequence[Table],
    open_runs: Sequence[records.Run],
    broken: Sequence[str],
    kind: str = "ci",
    groups: Sequence[str] = GROUPS,
) -> tuple[str, list[str]]:
    """The whole page, and the details that it leaves out to stay small."""
    tables = [found.by_group for found in tables]
    script, (data, left_out) = program(), payload.fit(tables)
    runs = sum(len(row.arm) for found in tables for row in found.rows)
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    notes = [f"Left out to keep the page small: {', '.join(left_out)}."] if left_out else []
    notes += [f"Not readable, left out: {line}" for line in broken]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Runs</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{in_html(policy(script))}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{(FOLDER / 'page.css').read_text()}</style></head><body>",
        f"<header><h1>Runs</h1><p>{runs} finished, {len(open_runs)} not; written {when}</p></header>",
        toolbar(tables, kind, groups),
        f'<main><details class="about"><summary>How to read this</summary><p>{ABOUT}</p><p>{APART}</p></details>',
        *(element("p", line, cls="note") for line in notes),
        *(section(place, found, kind) for place, found in enumerate(tables)),
        unfinished_html(open_runs),
        f'</main><script type="application/json" id="data">\n{data}\n</script>',
        f"<script>{script}</script></body></html>\n",
    ]
    return "\n".join(part for part in parts if part), left_out
