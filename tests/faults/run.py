"""Kills every registered method at named moments and writes the outcome into docs/testing.md.

    bash scripts/test.sh kills [--only NAME ...] [--record]

Three moments for each method, all of them for those of EVERY_MOMENT. The exit code is 1 if a continued run differs.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from models import get_model_names
from tests.conftest import ROOT
from tests.faults import kills

BEGIN, END = "<!-- kills: written by tests/faults/run.py --record -->", "<!-- end of kills -->"


def tried(name: str, folder: Path) -> list[kills.Trial]:
    """All trials of one method."""
    occurs = kills.whole(name, folder / "whole")
    return [
        kills.trial(name, moment, occurs[moment], folder / "whole", folder / f"killed{k}")
        for k, moment in enumerate(kills.moments_for(name, occurs))
    ]


def row_of(name: str, own: list[kills.Trial]) -> str:
    places = ", ".join(f"{t.moment} ({t.count} of {t.of})" for t in own)
    return f"| `{name}` | {places} | {sum(t.killed for t in own)} | {sum(t.sound for t in own)} |"


def record(path: Path, results: dict[str, list[kills.Trial]]) -> None:
    """Replace the rows of these methods in the table between the marks, and its totals."""
    page = path.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    table, _, tail = rest.partition(END)
    rows = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}
    rows |= {name: row_of(name, own) for name, own in results.items()}
    rows = {name: rows[name] for name in get_model_names() if name in rows}
    killed, equal = (sum(int(row.split("|")[k]) for row in rows.values()) for k in (-3, -2))
    lines = [
        BEGIN,
        f"{killed} kills of {len(rows)} methods; {equal} continued runs are equal ({time.strftime('%Y-%m-%d')}).",
        "",
        "| method | moments (which occurrence, of how many) | killed | equal |",
        "|---|---|---|---|",
        *rows.values(),
        END,
    ]
    path.write_text(head + "\n".join(lines) + tail, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="kills", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=get_model_names(), metavar="NAME", help="these methods alone")
    parser.add_argument("--record", action="store_true", help="write the rows into docs/testing.md")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        kills.warm_up(Path(folder) / "warm")
        for name in args.only or get_model_names():
            results[name] = tried(name, Path(folder) / name)
            for t in results[name]:
                print(f"{'equal' if t.sound else 'DIFFERS'}  {name}: {t}", flush=True)
            if args.record:
                record(ROOT / "docs" / "testing.md", {name: results[name]})
    sound = [t.sound for own in results.values() for t in own]
    print(f"{len(sound)} kills, {sum(sound)} equal")
    return int(not all(sound))


if __name__ == "__main__":
    sys.exit(main())
