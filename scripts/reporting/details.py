"""What is told about one run: the command that repeats it, where and with what it ran, and how it ended."""

import shlex
from pathlib import Path

from scripts import records
from utils.engine.record import RunRecord
from utils.errors import UserError
from utils.escape import clean

SHOWN_FILES = 20


def command_of(run: records.Run) -> str:
    """The command line as typed, with the seed that was drawn if none was given."""
    argv = list(run.start.get("argv") or [])
    if run.seed is not None and not any(word == "--seed" or word.startswith("--seed=") for word in argv):
        argv += ["--seed", str(run.seed)]
    return clean(shlex.join(["python", "main.py", *argv]), 3000)


def files_of(folder: Path) -> str:
    """Names and sizes of the files of a run."""
    try:
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "lock")
        told = [f"{p.relative_to(folder)} ({p.stat().st_size / 1024:.0f} KiB)" for p in files[:SHOWN_FILES]]
    except OSError as error:
        return clean(f"not readable: {error.strerror}")
    more = [f"and {len(files) - SHOWN_FILES} more"] if len(files) > SHOWN_FILES else []
    return clean(", ".join(told + more), 2000)


def facts_of(run: records.Run) -> list[tuple[str, str]]:
    """Labels and texts of everything that a page tells about a run."""
    start = run.start
    versions = {"python": start.get("python"), **(start.get("versions") or {})}
    changed = " (with uncommitted changes)" if str(start.get("git_commit") or "").endswith("+") else ""
    found = {
        "record": str(run.folder / "record.jsonl"),
        "date": start.get("time"),
        "commit": f"{start['git_commit']}{changed}" if start.get("git_commit") else None,
        "machine": ", ".join(str(v) for v in (start.get("host"), start.get("device")) if v),
        "threads": start.get("threads"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "data": str(start.get("dataset_fingerprint") or "")[:16],
        "weights": str(start.get("weights_sha256") or "")[:16],
        "files": files_of(run.folder),
        "warnings": "; ".join(str(row["text"]) for row in run.more if row["type"] == "warning" and row.get("text")),
    }
    return [(label, clean(text, 2000)) for label, text in found.items() if text not in (None, "")]


def ending_of(run: records.Run) -> tuple[str, str]:
    """(status, reason) of a run that is not finished."""
    status = run.end.get("status")
    if status == "failed":
        return "failed", clean(run.end.get("error") or "the record does not say why", 600)
    if status == "interrupted":
        number = run.end.get("signal")
        return "interrupted", clean(f"by signal {number}; " if number else "") + "--resume auto continues it"
    try:
        running = RunRecord(run.folder).status == "running"
    except (UserError, OSError):
        running = False
    if running:
        return "running", "its process holds the record"
    return "stopped", "the record has no end: the process was killed, or lost its machine; --resume auto continues it"
