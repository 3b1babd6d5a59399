"""How far a configuration is, read from its records alone: any of them that is done makes it finished."""

import functools
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.sweeps.plan import Job
from utils import json_text
from utils.engine.record import HASH_DIGITS, RunRecord, read_record
from utils.errors import UserError
from utils.escape import clean

TAIL_BYTES = 2**16
LAST = "_last"  # how the keys of final scores end


class State(NamedTuple):
    status: str  # done, running, interrupted, failed, waiting (no record) or broken
    folder: Path | None = None
    summary: dict[str, float] | None = None
    error: str = ""


def last_line(path: Path) -> bytes:
    """The last whole line of a file; a part that a killed writer left is skipped."""
    with open(path, "rb") as file:
        end, text = file.seek(0, os.SEEK_END), b""
        while end > 0 and text[: text.rfind(b"\n") + 1].strip().count(b"\n") < 1:
            begin = max(0, end - TAIL_BYTES)
            file.seek(begin)
            text, end = file.read(end - begin) + text, begin
    whole = text[: text.rfind(b"\n") + 1].strip()
    return whole.rpartition(b"\n")[2]


def ended(folder: Path, config: str) -> dict:
    """The `end` line of a record of this configuration; empty where there is none."""
    path = folder / "record.jsonl"
    try:
        last = json_text.parse(last_line(path), strict=True)
        if not isinstance(last, dict) or last.get("type") != "end":
            return {}
        with open(path, "rb") as file:
            first = json_text.parse(file.readline(), strict=True)
    except (OSError, ValueError):
        return {}
    return last if isinstance(first, dict) and first.get("config_hash") == config else {}


def is_done(end: dict) -> bool:
    return end.get("status") == "done" and isinstance(end.get("summary"), dict) and bool(end["summary"])


class Records:
    """The folders of runs under some results, listed once."""

    def __init__(self) -> None:
        self.folders = functools.cache(self._folders)

    def _folders(self, parent: Path) -> dict[str, list[Path]]:
        """Start of the configuration hash -> its folders, newest first."""
        found: dict[str, list[Path]] = {}
        try:
            names = sorted(os.listdir(parent), reverse=True)
        except OSError:
            return {}
        for name in names:
            parts = name.split("_")
            if len(parts) > 1:
                found.setdefault(parts[1], []).append(parent / name)
        return found

    def of(self, job: Job) -> list[Path]:
        return self.folders(job.results / job.dataset / job.model).get(job.config[:HASH_DIGITS], [])

    def finished(self, job: Job) -> dict | None:
        """The summary of the newest finished run of a configuration."""
        ends = (ended(folder, job.config) for folder in self.of(job))
        return next((end["summary"] for end in ends if is_done(end)), None)

    def state(self, job: Job) -> State:
        folders = self.of(job)
        for folder in folders:
            if is_done(end := ended(folder, job.config)):
                return State("done", folder, end["summary"])
        for folder in folders[:1]:
            try:
                status = RunRecord(folder).status
            except UserError as error:
                return State("broken", folder, error=clean(error, 300))
            return State(status, folder, error=clean(ended(folder, job.config).get("error") or "", 300))
        return State("waiting")


def tasks_of(job: Job) -> int:
    """Tasks in the newest record of a configuration; 0 if it cannot be read."""
    for folder in Records().of(job)[:1]:
        try:
            return sum(row.get("type") == "task" for row in read_record(folder / "record.jsonl"))
        except UserError:
            return 0
    return 0


def score_of(summary: dict[str, float] | None) -> tuple[str, float]:
    """Name and value of the first final score, in the order of the record."""
    scores = {k: v for k, v in (summary or {}).items() if isinstance(v, (int, float))}
    name = next((k for k in scores if k.endswith(LAST)), next(iter(scores), ""))
    return name, scores.get(name, math.nan)


def table(jobs: Sequence[Job], states: Iterable[State], most: int = 200) -> list[list]:
    """Rows of the table at the end: the state and final score of each run."""
    rows: list[list] = [["run", "state", "score", "", "seconds", "record"]]
    for job, state in zip(jobs[:most], states, strict=False):
        name, score = score_of(state.summary)
        seconds = (state.summary or {}).get("wall_s", math.nan)
        rows.append(
            [
                job.title,
                state.status,
                score,
                name,
                seconds,
                str(state.folder or "-") if not state.error else state.error,
            ]
        )
    if len(jobs) > most:
        rows.append([f"and {len(jobs) - most} more", "", math.nan, "", math.nan, ""])
    return rows
