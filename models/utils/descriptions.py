"""Descriptions of class names in words, from a JSON file of the user or the one of the picture world."""

from __future__ import annotations

from pathlib import Path

from utils import json_text
from utils.errors import UserError

TINY = Path(__file__).with_name("tiny_descriptions.json")
TEXT = '{"cat": ["whiskers", "a long tail"], ...}'


def descriptions(source: str | None, names: list[str]) -> list[list[str]]:
    """For each name the descriptions under it, or else under its words; `source` is a path, or `tiny`.

    The file is an object of lists of texts by class name. A name without any is refused.
    """
    if not source:
        raise UserError(f"--descriptions is missing: give a JSON such as {TEXT}, or tiny for the picture world")
    path = TINY if source == "tiny" else Path(source).expanduser()
    try:
        table = json_text.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--descriptions {source} cannot be read ({error}); write {TEXT} into it") from None
    fits = isinstance(table, dict) and all(isinstance(own, list) for own in table.values())
    if not fits or not all(isinstance(text, str) and text.strip() for own in table.values() for text in own):
        raise UserError(f"--descriptions {source} does not map class names to lists of texts: write {TEXT}")
    found = [table.get(name) or [text for word in words_of(name, table) for text in table[word]] for name in names]
    without = [name for name, own in zip(names, found, strict=True) if not own]
    if without:
        shown = ", ".join(without[:3]) + (f" and {len(without) - 3} more" if len(without) > 3 else "")
        raise UserError(f"--descriptions {source} has none of {shown}: add a list of texts for each class name")
    return found


def words_of(name: str, table: dict) -> list[str]:
    """Keys of the table that stand in a name as whole words, in the order in which they stand there."""
    inside = [key for key in table if f" {key} " in f" {name} "]
    return sorted(inside, key=f" {name} ".index)
