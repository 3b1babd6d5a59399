"""A table of all runs under a folder, drawn again every few seconds: progress, score, loss, time left.

    python scripts/watch.py runs/            until Ctrl-C; also while runs on other machines write to a shared folder
    python scripts/watch.py runs/ --once     once, as text (the default where there is no terminal)

Records are only read. `stale` is a run without an end that wrote nothing for a while and whose process is not on this
machine.
"""

import argparse
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.sweeps.live import duration
from scripts.sweeps.state import is_done, score_of
from utils import json_text
from utils.cli import shell
from utils.engine.heartbeat import NAME
from utils.engine.record import RunRecord, format_table, read_record
from utils.errors import UserError
from utils.escape import clean

STALE_S = 15 * 60
ORDER = ("running", "stale", "failed", "interrupted", "broken", "done")


class Seen(NamedTuple):
    """What a run's folder says."""

    name: str
    state: str
    progress: float  # of all tasks, 0 to 1
    task: str
    score: float
    loss: float
    left: float | None  # seconds


class Watch:
    """Reads only what has changed since the last look."""

    def __init__(self, root: Path):
        self.root = root
        self.rows: dict[Path, tuple[tuple, list[dict] | str]] = {}

    def runs(self) -> list[Seen]:
        paths = sorted(self.root.rglob("record.jsonl"), key=lambda path: path.parent.name, reverse=True)
        found = [seen for path in paths if (seen := self.seen(path)) is not None]
        return sorted(found, key=lambda seen: ORDER.index(seen.state))

    def seen(self, path: Path) -> Seen | None:
        try:
            stat = path.stat()
            key = (stat.st_size, stat.st_mtime_ns)
            if self.rows.get(path, ((), ""))[0] != key:
                self.rows[path] = key, self.read(path)
            rows = self.rows[path][1]
            if isinstance(rows, str):
                return Seen(rows, "broken", 0.0, "", math.nan, math.nan, None)
            return told(path.parent, rows, max(stat.st_mtime, beat_of(path.parent)[1]))
        except OSError:  # removed while it was read
            return None

    def read(self, path: Path) -> list[dict] | str:
        try:
            rows = read_record(path)
        except UserError as error:
            return clean(error, 120)
        fits = rows and rows[0]["type"] == "start" and isinstance(rows[0].get("args"), dict)
        return rows if fits else clean(f"{path} does not begin with a 'start' line", 120)


def beat_of(folder: Path) -> tuple[dict, float]:
    """progress.json and when it was written; nothing where there is none."""
    path = folder / NAME
    try:
        row, when = json_text.parse(path.read_bytes()), path.stat().st_mtime
    except (OSError, json.JSONDecodeError):
        return {}, 0.0
    fits = isinstance(row, dict) and all(type(row.get(k)) in (int, float) for k in ("task", "tasks", "within"))
    return (row, when) if fits else ({}, when)


def state_of(folder: Path, end: dict, changed: float) -> str:
    """From the record's last line; without an end, the writer's lock says whether it runs on this machine."""
    if end:
        return str(end["status"])
    if RunRecord(folder).is_locked():
        return "running"
    return "interrupted" if time.time() - changed < STALE_S else "stale"


def told(folder: Path, rows: list[dict], changed: float) -> Seen:
    args, last = rows[0]["args"], rows[-1]
    tasks = [row for row in rows if row["type"] == "task"]
    beat = beat_of(folder)[0]
    end = last if last["type"] == "end" else {}
    state = state_of(folder, end, changed)
    scores = next(iter((tasks[-1].get("scores") or {}).values()), []) if tasks else []
    number = len(scores) or beat.get("tasks") or 0
    within = beat["within"] if beat and beat["task"] >= len(tasks) else 0.0
    progress = 1.0 if is_done(end) else min(1.0, (len(tasks) + within) / number) if number else 0.0
    seen = [v for v in scores[: len(tasks)] if v is not None]
    score = score_of(end["summary"])[1] if is_done(end) else sum(seen) / len(seen) if seen else math.nan
    spent = tasks[-1].get("wall_s") if tasks else None
    left = spent / len(tasks) * (number - len(tasks) - within) if spent and state == "running" else None
    name = " ".join(str(v) for v in (args.get("notes") or args.get("model"), args.get("dataset"), args.get("seed")))
    loss = beat.get("loss")
    loss = float(loss) if type(loss) in (int, float) and state == "running" else math.nan
    at = f"{min(len(tasks) + (state == 'running'), number)}/{number or '?'}"
    return Seen(clean(name, 60), state, progress, at, score, loss, left)


def bar(progress: float, width: int = 12) -> str:
    full = round(progress * width)
    return f"{'#' * full}{'.' * (width - full)} {progress:4.0%}"


def page(root: Path, runs: list[Seen], lines: int = 10**6) -> str:
    """The table, cut to what fits."""
    if not runs:
        return f"no record under {root} yet"
    head = ["run", "state", "progress", "task", "score", "loss", "time left"]
    shown = runs[: max(1, lines - 4)]
    cells = [[r.name, r.state, bar(r.progress), r.task, r.score, r.loss, duration(r.left)] for r in shown]
    counts = {s: sum(r.state == s for r in runs) for s in ORDER}
    tail = ", ".join(f"{n} {s}" for s, n in counts.items() if n)
    hidden = f"; {len(runs) - len(shown)} not shown" if len(runs) > len(shown) else ""
    return f"{format_table([head, *cells])}\n{tail}{hidden}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="a --results_path (default runs)")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two looks (default 2)")
    parser.add_argument("--once", action="store_true", help="print the table once")
    args = parser.parse_args(argv)
    if not args.folder.is_dir() or not args.every > 0:
        what = f"{args.folder} is not a folder" if args.every > 0 else f"--every {args.every} must be more than 0"
        print(f"error: {what}", file=sys.stderr)
        return 2
    watch = Watch(args.folder)
    if args.once or not sys.stdout.isatty():
        print(page(args.folder, watch.runs()))
        return 0
    while True:
        size = shutil.get_terminal_size()
        text = page(args.folder, watch.runs(), size.lines)
        cut = os.linesep.join(line[: size.columns] for line in text.splitlines())
        print(f"\x1b[H\x1b[J{cut}", flush=True)
        time.sleep(args.every)


if __name__ == "__main__":
    sys.exit(shell.exits(main))
