"""A list of images that people wrote themselves: CSV or JSONL, one row per image, columns as there are."""

import csv
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils import json_text
from utils.content import file_digest
from utils.errors import UserError, shown

COLUMNS = ("image", "label", "split", "task", "domain", "text", "question", "answers")
ALSO = {"path": "image", "answer": "answers"}  # other names of a column
SPLITS = ("train", "test", "val")
SUFFIXES = (".csv", ".jsonl")
HINT = f"columns are {', '.join(COLUMNS)}"


@dataclass(slots=True)
class Row:
    """One image of a stream; what the source does not say is empty."""

    image: Path
    key: str  # the path below the source, which decides about the hash split
    label: str = ""
    split: str = ""
    place: str = ""  # the name of its task or domain
    text: str = ""
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class OwnList:
    """The rows of a list, and which columns decided what."""

    rows: list[Row]
    columns: frozenset[str]
    unused: tuple[str, ...]

    @property
    def kind(self) -> str:
        return next((name for name in ("question", "text") if name in self.columns), "image")


def read_list(source: Path) -> OwnList:
    """The rows of a .csv with a header line or of a .jsonl with one object per line; relative paths start at its
    folder. Read once as long as the file is not changed."""
    if source.suffix.lower() not in SUFFIXES:
        raise UserError(f"--folder_path {source} is neither a folder nor a .csv or .jsonl list")
    try:
        version = file_digest(source)
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror})") from None
    return _read_list(source, version)


@functools.lru_cache(maxsize=4)
def _read_list(source: Path, version: bytes) -> OwnList:
    found = list(_cells(source))
    if not found:
        raise UserError(f"{source} has no rows: write one per image; {HINT}")
    given = dict.fromkeys(name for _, cells in found for name in cells)
    columns = frozenset(given) & frozenset(COLUMNS)
    needed = ["image"] + (["question", "answers"] if "question" in columns else ["label"])
    absent = [name for name in needed if name not in columns]
    if absent:
        raise UserError(f"{source} line {found[0][0]}: no column {', '.join(absent)}; {HINT}")
    place = next((name for name in ("task", "domain") if name in columns), None)
    used = {*needed, "split", place} | ({"text"} if "question" not in columns else set())
    rows = [_row(source, line, cells, columns & used, place) for line, cells in found]
    return OwnList(rows, columns & used, tuple(name for name in given if name not in used))


def _row(source: Path, line: int, cells: dict, columns: frozenset[str], place: str | None) -> Row:
    texts = {name: str(cells.get(name) if cells.get(name) is not None else "").strip() for name in columns}
    answers = _answers(cells.get("answers")) if "answers" in columns else ()
    missing = [name for name in COLUMNS if name in columns - {"text", "answers"} and not texts[name]]
    missing += ["answers"] * ("answers" in columns and not answers)
    if missing:
        raise UserError(f"{source} line {line}: no value for {', '.join(missing)}; every row needs it")
    path, split = texts["image"], texts.get("split", "")
    if split and split not in SPLITS:
        raise UserError(f"{source} line {line}: split '{shown(split)}' is not one of {', '.join(SPLITS)}")
    if place == "task" and not texts["task"].isdecimal():
        raise UserError(
            f"{source} line {line}: task '{shown(texts['task'])}' is not a number 0, 1, ...; names go into domain"
        )
    if not os.path.isabs(path) and os.path.normpath(path).split(os.sep)[0] == "..":
        raise UserError(
            f"{source} line {line}: {shown(path)} is outside the folder of the list; "
            "move the image or give its full path"
        )
    image = source.parent / path
    if not os.path.isfile(image):
        raise UserError(f"{source} line {line}: image {image} does not exist; fix or remove the row")
    text = texts.get("question") or texts.get("text", "")
    where = texts[place] if place else ""
    return Row(image, os.path.normpath(path), texts.get("label", ""), split, where, text, answers)


def _answers(value: object) -> tuple[str, ...]:
    """A list, or one text with | between the answers."""
    parts = value if isinstance(value, (list, tuple)) else str(value if value is not None else "").split("|")
    return tuple(text for part in parts if (text := str(part).strip()))


def _cells(source: Path) -> Iterator[tuple[int, dict]]:
    """(line number, column -> value)."""
    line = 1
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            if source.suffix.lower() == ".csv":
                reader = csv.DictReader(file, strict=True)
                for row in reader:
                    line = reader.line_num
                    if any(value.strip() for value in row.pop(None, ())):  # a comma at the end is no value
                        raise ValueError("it has more values than the header has columns")
                    yield line, _named(row)
                return
            for line, text in enumerate(file, 1):
                if text.strip():
                    row = json_text.parse(text)
                    if not isinstance(row, dict):
                        raise ValueError("not an object with columns as keys")
                    yield line, _named(row)
    except (csv.Error, ValueError, OSError) as error:
        raise UserError(f"{source} cannot be read at or after line {line} ({error}): fix that row") from None


def _named(row: dict) -> dict:
    """Columns under their first names; a column that is there under both is left as it is."""
    return {ALSO[name] if name in ALSO and ALSO[name] not in row else name: value for name, value in row.items()}
