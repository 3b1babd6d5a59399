"""One page about all runs under a folder: tables over seeds, curves, heat maps and the details of each run.

    python scripts/report.py                       # runs/ -> runs/report.html, and the tables on the terminal
    python scripts/report.py sweeps/a --out a.html --spread std
    python scripts/report.py --format latex --groups accuracy,forgetting    # md, latex, csv, json on the terminal
    python scripts/report.py --reported seq-cifar100 --protocol c3box    # published numbers alone, without any run

Runs that differ only in their seeds are one row: mean, and half the 95 % interval where there are three or more (or
with --spread std the standard deviation). A row is named by --notes, or by what differs from the other rows. A table
holds one protocol (its hash and the flags given against it) and one set of weights: nothing is averaged or set in bold
across them. Published numbers stand below ours, with the difference where protocol and weights are the same. The page
is a single self-contained file. Records are only read; runs without an end are listed with the reason.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts import records, reported
from scripts.reporting import export, page
from scripts.reporting.arms import SHORT, grouped
from scripts.reporting.columns import GROUPS, SPREADS
from scripts.reporting.rows import all_tables, lines_of
from utils.cli import shell
from utils.engine.record import format_table
from utils.errors import UserError, disk_errors, shown
from utils.escape import clean


def load(folder: Path) -> tuple[list[records.Run], list[str]]:
    """All runs below a folder, oldest first, and the errors of those that could not be read."""
    return records.load(folder, ("model", "dataset"))


def on_terminal(lines: list[list[str]], marks: list[list[str]]) -> list[list[str]]:
    """The same as text: * marks the best of a table."""
    return [
        [f"{cell} *" if mark == "best" else cell for cell, mark in zip(line, own, strict=True)]
        for line, own in zip(lines, marks, strict=True)
    ]


def columns(text: str) -> list[str]:
    """--groups: names of groups of columns."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in found if name not in GROUPS]:
        raise argparse.ArgumentTypeError(f"no group {shown(unknown[0])}; there are {', '.join(GROUPS)}")
    if not found:
        raise argparse.ArgumentTypeError(f"needs a group of {', '.join(GROUPS)}")
    return found


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("runs"), help="a --results_path (default runs)")
    parser.add_argument(
        "--out", type=Path, help="the page (default: report.html in that folder), or the file of --format"
    )
    parser.add_argument(
        "--format", choices=["html", *export.FORMATS], default="html", help="html: the page; else the tables as text"
    )
    parser.add_argument("--spread", choices=list(SPREADS), default="ci", help="after ±: deviation, or 95 %% interval")
    parser.add_argument("--groups", type=columns, help=f"columns to show, by comma: {', '.join(GROUPS)}")
    parser.add_argument("--reported", metavar="DATASET", help="print the published numbers of a data set, and exit")
    parser.add_argument("--protocol", help="with --reported: those under one protocol")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    try:
        if args.reported or args.protocol:
            if not args.reported:
                raise UserError("--protocol needs --reported DATASET")
            print(reported.listing(args.reported, args.protocol))
            return 0
        runs, broken = load(args.results)
        for line in broken:
            print(f"not readable, left out: {line}", file=sys.stderr)
        if not runs:
            raise UserError(f"no usable record.jsonl below {args.results}; give the --results_path of your runs")
        return write_page(args, runs, broken) if args.format == "html" else write_text(args, runs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def write_text(args: argparse.Namespace, runs: list[records.Run]) -> int:
    """--format: the tables as text, to --out or the terminal."""
    wanted = None if args.groups or args.format in export.EVERY_COLUMN else SHORT
    tables = all_tables(grouped(runs), wanted, args.groups or GROUPS)
    if wanted:
        tables = [found.without(found.twins) for found in tables]
    if not tables:
        raise UserError(f"no run below {args.results} is finished: there is no table yet")
    text = export.FORMATS[args.format](tables, args.spread)
    if args.out is None:
        sys.stdout.write(text)
        return 0
    with disk_errors(args.out, "choose another --out"):
        args.out.write_text(text, encoding="utf-8")
    print(f"table: {args.out}")
    return 0


def write_page(args: argparse.Namespace, runs: list[records.Run], broken: list[str]) -> int:
    """The page, and its tables on the terminal."""
    groups = grouped(runs)
    for found in all_tables(groups, None if args.groups else SHORT, args.groups or GROUPS):
        print(f"{clean(found.dataset)}: {found.heading}")
        print(f"{format_table(on_terminal(*lines_of(found.without(found.twins), args.spread)))}\n")
    if groups:
        print(f"* best of a table. {page.APART}")
    out = args.out or args.results / "report.html"
    open_runs = [run for run in runs if run.summary is None]
    text, left_out = page.page(all_tables(groups), open_runs, broken, args.spread, args.groups or GROUPS)
    with disk_errors(out, "choose another --out"):
        out.write_text(text, encoding="utf-8")
    if left_out:
        print(f"left out to keep the page small: {', '.join(left_out)}")
    print(f"report: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(shell.exits(main))
