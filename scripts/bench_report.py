"""Where the rows of a bench go: a printed table, a JSON file with the facts of the machine, docs/performance.md."""

import json
import os
import platform
import re
import time
from collections.abc import Collection
from pathlib import Path

import torch

from scripts.bench_common import ROOT, Row
from scripts.claims_page import processor
from scripts.records import markdown
from utils import json_text
from utils.engine.provenance import commit_and_changes
from utils.errors import UserError, disk_errors

PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- benches -->\n", "<!-- end of benches -->\n"
SECTION = re.compile(r"^### Suite `(\w+)`\n.*?(?=^### Suite |\Z)", re.M | re.S)
TYPES = {"name": str, "value": (int, float), "unit": str, "limit": (int, float, type(None)), "note": str}
TEXTS = ("suite", "command", "commit", "date")


def facts() -> dict:
    """The machine as it is before the measurement; the load is that of the last minute."""
    return {
        "commit": commit_and_changes()[0] or "unknown",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": {
            "processor": processor(),
            "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
            "threads": torch.get_num_threads(),
            "load before": round(os.getloadavg()[0], 1),
            "system": platform.system(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def document(suite: str, command: str, before: dict, rows: list[Row]) -> dict:
    machine = before["machine"] | {"load after": round(os.getloadavg()[0], 1)}
    return {"suite": suite, "command": command} | before | {"machine": machine, "rows": [r._asdict() for r in rows]}


def write(path: Path, found: dict) -> None:
    with path.open("x") as file:
        json.dump(found, file, indent=1)


def source(found: dict) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    return f"commit {found['commit']}, {found['date']}; {machine}"


def cells(row: Row) -> list[str]:
    limit = "" if row.limit is None else f"{row.limit:g} {row.unit}".rstrip() + " (exceeded)" * row.broken
    return [row.name, f"{row.value:.4g} {row.unit}".rstrip(), limit, row.note]


def printed(found: dict, rows: list[Row]) -> str:
    table = [["what", "measured", "limit", "note"], *map(cells, rows)]
    widths = [max(len(line[k]) for line in table) for k in range(3)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[3]]).rstrip() for line in table]
    return "\n".join([f"{found['suite']}: {source(found)}", *lines])


def read(path: Path, suites: Collection[str]) -> tuple[dict, list[Row]]:
    """A file that --out wrote."""
    try:
        found = json_text.parse(path.read_bytes(), strict=True)
    except OSError as error:
        raise UserError(f"--page {path}: {error.strerror}; give a file that --out wrote") from None
    except json.JSONDecodeError as error:
        raise UserError(f"--page {path}: not JSON ({error}); give a file that --out wrote") from None
    rows = found.get("rows") if isinstance(found, dict) else None
    fine = isinstance(rows, list) and isinstance(found.get("machine"), dict)
    fine = fine and all(isinstance(found.get(name), str) for name in TEXTS) and found["suite"] in suites
    for row in rows if fine else ():
        fine &= isinstance(row, dict) and row.keys() == TYPES.keys()
        fine = fine and all(isinstance(row[name], kind) for name, kind in TYPES.items())
    if not fine:
        raise UserError(f"--page {path}: not the rows of a suite; give a file that --out wrote")
    return found, [Row(**row) for row in rows]


def section(found: dict, rows: list[Row]) -> str:
    table = markdown(["what", "measured", "limit", "note"], map(cells, rows))
    return f"### Suite `{found['suite']}`\n\n*Reproduced*: `{found['command']}`, {source(found)}.\n\n{table}\n"


def write_page(paths: list[Path], suites: Collection[str]) -> None:
    """Write the table of each file between the markers of the page; tables of other suites stay."""
    new = [read(path, suites) for path in paths]
    text = PAGE.read_text()
    head, begin, rest = text.partition(BEGIN)
    body, end, tail = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{PAGE}: a line {BEGIN.strip()} and after it {END.strip()} are needed to know where tables go")
    tables = {match[1]: match[0] for match in SECTION.finditer(body)}
    tables |= {found["suite"]: section(found, rows) for found, rows in new}
    ordered = "".join(tables[suite] for suite in suites if suite in tables)
    with disk_errors(PAGE, "make it writable"):
        PAGE.write_text(f"{head}{BEGIN}\n{ordered}{END}{tail}")
