"""Writes docs/cli.md from the parsers: every flag of the framework, of each method and of each stream.

A test keeps the page up to date.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets import get_dataset_class, get_dataset_names
from models import get_model_class, get_model_names
from utils import cli
from utils.cli import registry
from utils.cli.parser import add_model_args
from utils.cli.signatures import add_arguments

PAGE = registry.ROOT / "docs" / "cli.md"
HEAD = """# Every flag

Written by `python scripts/cli_page.py` from the parsers; a test keeps it up to date. To see the flags of one run:
`python main.py --model X --dataset Y --help`; their values, with the origin of each: `--show_config`. Booleans are 0
or 1. Of a method, *own defaults* are those that it gives to flags of every run.
"""
KINDS = {
    "str": "text",
    "custom_str_underscore": "name",
    "parse": "text",
    "boolean": "0, 1",
    "int": "integer",
    "float": "number",
    "real": "number",
    "natural": "0, 1, 2, ...",
    "positive_int": "1, 2, 3, ...",
    "non_negative": "number >= 0",
    "positive": "number > 0",
}


def value_of(action: argparse.Action) -> str:
    """What may be given: the choices, or the name of the type."""
    if action.choices is not None:
        return ", ".join(f"`{choice}`" for choice in action.choices)
    if action.nargs == 0:
        return ""
    kind = getattr(action.type, "__name__", "text") if action.type else "text"
    return KINDS.get(kind, kind.replace("_", " "))


def default_of(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.required:
        return "required"
    if action.default is None or action.default is argparse.SUPPRESS:
        return ""
    value = int(action.default) if isinstance(action.default, bool) else action.default
    return f"`{' '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}`"


def row(action: argparse.Action) -> str:
    text = (action.help or "").replace("%%", "%").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    names = ", ".join(f"`{option}`" for option in action.option_strings)
    return f"| {names} | {value_of(action)} | {default_of(action)} | {text} |"


def table(actions: list[argparse.Action]) -> str:
    return "\n".join(["| flag | value | default | meaning |", "|---|---|---|---|", *map(row, actions)]) + "\n"


def framework() -> str:
    """The groups of the parser that every run has."""
    parts = []
    for group in cli.new_parser()._action_groups:
        if actions := [a for a in group._group_actions if a.help != argparse.SUPPRESS]:
            parts.append(f"### {group.title}\n\n{table(actions)}")
    return "\n".join(parts)


def own(add) -> tuple[list[argparse.Action], dict[str, object]]:
    """The flags that `add` puts into a parser, and the framework's defaults that it changes."""
    parser = cli.new_parser()
    before = {action.dest: action.default for action in parser._actions}
    add(parser)
    actions = [a for a in parser._actions if a.dest not in before and a.help != argparse.SUPPRESS]
    after = {action.dest: action.default for action in parser._actions} | parser._defaults
    return actions, {k: after[k] for k, v in before.items() if after[k] != v}


def section(name: str, add) -> str:
    actions, changed = own(add)
    defaults = ", ".join(f"*`--{k} {int(v) if isinstance(v, bool) else v}`*" for k, v in changed.items())
    lines = [f"### {name}\n"]
    if defaults:
        lines.append(f"Own defaults: {defaults}.\n")
    if actions:
        lines.append(table(actions))
    return "\n".join(lines) if len(lines) > 1 else ""


def methods() -> str:
    found = {name: get_model_class(name) for name in sorted(get_model_names())}
    return "\n".join(filter(None, (section(n, lambda p, c=c: add_model_args(p, c)) for n, c in found.items())))


def streams() -> str:
    found = {name: get_dataset_class(name) for name in sorted(get_dataset_names())}
    return "\n".join(filter(None, (section(n, lambda p, c=c: add_arguments(p, c, "")) for n, c in found.items())))


def page() -> str:
    parts = [HEAD, "## Of every run\n", framework(), "## Of a method\n", methods(), "## Of a stream\n", streams()]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE} written")
