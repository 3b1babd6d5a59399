"""What the lines of a record.jsonl may contain: each kind of line with its fields, checked before they are used."""

import math
from collections.abc import Callable, Iterable
from typing import Any

STATUSES = {"done", "interrupted", "failed"}


def is_number(value: Any) -> bool:
    """A finite number that fits a float; true and false are not numbers."""
    try:
        return type(value) in (int, float) and math.isfinite(float(value))
    except OverflowError:
        return False


def _is(*kinds: type) -> Callable:
    return lambda value: type(value) in kinds


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _numbers(value: object) -> bool:
    return isinstance(value, list) and all(v is None or is_number(v) for v in value)


def _mapping(fits: Callable) -> Callable:
    return lambda value: isinstance(value, dict) and all(v is None or fits(v) for v in value.values())


def _list_of(kind: type) -> Callable:
    return lambda value: isinstance(value, list) and all(type(v) is kind for v in value)


def _lists_of(size: int, fits: Callable) -> Callable:
    """A list of lists of one length."""
    return lambda value: (
        isinstance(value, list)
        and all(isinstance(row, list) and len(row) == size and all(map(fits, row)) for row in value)
    )


def _or_none(fits: Callable) -> Callable:
    return lambda value: value is None or fits(value)


def _args(value: Any) -> bool:
    """Arguments of a run; those that readers use are type-checked."""
    texts = all(type(value[k]) in (str, type(None)) for k in ("model", "dataset", "notes", "mtil_order") if k in value)
    return texts and (value.get("seed") is None or _count(value["seed"]))


def _preset(value: Any) -> bool:
    """Name and hash of a protocol, and the flags given against it."""
    return (
        isinstance(value, dict)
        and all(type(value.get(key)) is str for key in ("name", "sha256"))
        and isinstance(value.get("deviations"), dict)
    )


FIELDS: dict[str, dict[str, Callable]] = {
    "start": {
        "schema": _count,
        "args": _or_none(lambda v: isinstance(v, dict) and _args(v)),
        "argv": _list_of(str),
        "command": _is(str),
        "git_commit": _is(str, type(None)),
        "git_changes": _list_of(str),
        "patch_sha256": _is(str, type(None)),
        "code": _mapping(_mapping(_is(str))),
        "packages": _list_of(str),
        "gpu": _or_none(_mapping(_is(str))),
        "preset": _or_none(_preset),
        "device": _is(str),
        "threads": _count,
        "ranks": _count,
        "config_hash": _is(str, type(None)),
        "class_order": _or_none(_list_of(int)),
        "dataset_fingerprint": _is(str, type(None)),
        "class_names": _or_none(_list_of(str)),
        "protocol": _is(dict, type(None)),
        "versions": _mapping(_is(str)),
        "weights_sha256": _is(str, type(None)),
    },
    "task": {
        "task": _count,
        "scores": lambda v: isinstance(v, dict) and all(map(_numbers, v.values())),
        "seconds": _mapping(is_number),
        "test_images": _numbers,
        "probes": _mapping(is_number),
        "probes_untouched": _mapping(is_number),
        "wall_s": is_number,
        "parameters": _mapping(is_number),
        "per_class": _numbers,
        "confusion": _lists_of(3, _count),
        "loss": _or_none(_numbers),
        "evaluated": _is(bool),
        "gradient_bytes_per_step": is_number,
    },
    "epoch": {"task": _count, "epoch": _count, "class_il": _numbers},
    "warning": {"text": _is(str)},
    "features": {"task": _count, "from_earlier_runs": _count},
    "end": {"status": lambda v: v in STATUSES if isinstance(v, str) else False, "summary": _mapping(is_number)},
}
NEEDED = {"end": {"status"}}  # of every reader
OF_A_PAGE = {"start": {"args"}, "task": {"task", "scores"}, "end": {"status", "summary"}}  # of tables and pages


def wrong_line(row: Any, needed: dict[str, set[str]] = NEEDED) -> str | None:
    """The error in one line, in a few words, or None."""
    if not isinstance(row, dict) or not isinstance(row.get("type"), str):
        return "it does not have a 'type'"
    fields = FIELDS.get(row["type"], {})
    missing = sorted(needed.get(row["type"], set()) - row.keys())
    if missing:
        return f"'{missing[0]}' is missing"
    wrong = [name for name, fits in fields.items() if name in row and not fits(row[name])]
    return f"'{wrong[0]}' holds {str(row[wrong[0]])[:40]!r}" if wrong else None


def wrong_record(rows: list[dict], needs: Iterable[str] = ("model",)) -> str | None:
    """The error in a whole record for tables and pages, in a few words; its lines have been checked."""
    if not rows or rows[0]["type"] != "start":
        return "it does not begin with a 'start' line"
    for number, row in enumerate(rows, start=1):
        if told := wrong_line(row, OF_A_PAGE):
            return f"line {number}: {told}"
    args = rows[0]["args"] or {}
    unnamed = [name for name in needs if not args.get(name)]
    if unnamed:
        return f"its first line does not contain {unnamed[0]}"
    if sum(row["type"] == "start" for row in rows) > 1:
        return "it has a second 'start' line"
    tasks = [row for row in rows if row["type"] == "task"]
    numbers = [row["task"] for row in tasks]
    if numbers != sorted(set(numbers)):
        return "its tasks are not in order"
    short = [t["task"] for t in tasks if any(len(values) <= t["task"] for values in t["scores"].values())]
    if short:
        return f"task {short[0]} has fewer scores than tasks"
    end = rows[-1] if rows[-1]["type"] == "end" else {}
    return "it is done but does not have scores" if end.get("status") == "done" and not end["summary"] else None
