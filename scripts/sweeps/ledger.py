"""processes.jsonl beside the records: one line for each process that was started, with CPU seconds and exit code."""

import json
import time
from pathlib import Path

from utils import json_text
from utils.errors import disk_errors

LEDGER = "processes.jsonl"


def add(results: Path, row: dict) -> None:
    with disk_errors(results), open(results / LEDGER, "a", encoding="utf-8") as file:
        file.write(json.dumps(row | {"ended": round(time.time(), 3)}) + "\n")


def read(results: Path) -> list[dict]:
    """The processes that were started so far; lines that are not ours are skipped."""
    try:
        lines = (results / LEDGER).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            row = json_text.parse(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("config"), str) and type(row.get("cpu_s")) in (int, float):
            found.append(row)
    return found


def refused_since(results: Path, config: str, when: float) -> str | None:
    """What main.py refused (exit code 2) a configuration with since a moment, by any sweep."""
    rows = [row for row in read(results) if row["config"] == config and row.get("code") == 2]
    late = [row for row in rows if type(row.get("ended")) in (int, float) and row["ended"] >= when]
    return str(late[-1].get("error")) if late else None
