"""From names to files to classes: listing reads text, only what is chosen is imported. Standard library only."""

import difflib
import functools
import importlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from utils.cli import plugins
from utils.errors import UserError, shown

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"model": "models", "dataset": "datasets", "backbone": "backbone"}
OWN_PACKAGES = {"models", "datasets", "backbone", "utils", "main"}

# a method's name elsewhere -> its name here; a plug-in that defines the name comes first
RENAMED = {
    "zero-shot": "clip",
    "finetune": "sgd",
    "sprompt": "s-prompts",
    "sprompts": "s-prompts",
}
PLUGIN = "plugin:"  # before a name: the plug-in's, if this checkout has one too

_registered: dict[str, dict[str, Any]] = {kind: {} for kind in PACKAGES}


@dataclass(frozen=True)
class Entry:
    """Where a name is defined, read from the text of the file."""

    name: str
    path: Path
    module: str
    line: str  # one-line description
    setting: str  # a dataset's SETTING, empty for others


def canonical(name: str) -> str:
    """`ER_ACE` and `er-ace` are the same name."""
    return name.strip().lower().replace("_", "-")


def register(kind: str, name: str) -> Callable:
    """Decorator: make a class or function available under `name`."""

    def decorate(obj: Any) -> Any:
        if plugins.replaceable(getattr(sys.modules.get(obj.__module__), "__file__", __file__)):
            if not hasattr(obj, "NAME"):
                obj.NAME = canonical(name)
            return obj  # found in its file on request; it never replaces one of our names
        known = _registered[kind].get(canonical(name))
        if known is not None and known.__qualname__ != obj.__qualname__:
            raise UserError(f"{kind} '{canonical(name)}' is registered twice; rename one of the two")
        if not hasattr(obj, "NAME"):
            obj.NAME = canonical(name)
        _registered[kind][canonical(name)] = obj
        return obj

    return decorate


def search_folders(kind: str) -> list[Path]:
    """Folders that hold the files of a kind, ours first; a package whose `__path__` was extended adds its own."""
    package = PACKAGES[kind]
    if package in sys.modules:
        return [Path(p) for p in sys.modules[package].__path__ if p not in plugins.surface(package)]
    return [ROOT / package, *plugins.folders(package)]


def config_folders(kind: str, name: str) -> list[Path]:
    """Where the yaml files of a name are: next to a plug-in's own file, or in our folders."""
    entry = None if canonical(name) in _registered[kind] else index(kind).get(canonical(name))
    if entry is not None and plugins.owns(entry.path):
        return [entry.path.parent]
    return [f for f in search_folders(kind) if not plugins.owns(f)]


_NAME = re.compile(r"""^[ \t]+NAME(?:\s*:\s*str)?\s*=\s*["']([^"']+)["']""", re.M)
_SETTING = re.compile(r"""^[ \t]+SETTING(?:\s*:\s*str)?\s*=\s*["']([^"']+)["']""", re.M)
_DOC = re.compile(r'^\s*(?:#.*\n|\s*\n)*[rR]?"""(.*?)(?:\n|""")')
_DEF_DOC = re.compile(r'(?:def|class)\s+\w+(?:[^"]|"[^"\n]+")*?:\s*\n\s+[rR]?"""(.*?)(?:\n|""")')


def _scan_file(kind: str, path: Path) -> list[Entry]:
    return list(_scan(kind, path, path.read_text(encoding="utf-8", errors="replace")))


@functools.cache  # one command needs the index several times, and a process may run several commands
def _scan(kind: str, path: Path, text: str) -> list[Entry]:
    module = f"{PACKAGES[kind]}.{path.stem}"
    found = _DOC.match(text)
    line = found.group(1).strip() if found else ""
    declared = _SETTING.search(text)
    setting = declared.group(1) if declared else ""
    entries = [Entry(canonical(n), path, module, line, setting) for n in _NAME.findall(text)]
    for match in re.finditer(rf"""@register_{kind}\(\s*["']([^"']+)["']""", text):
        own = _DEF_DOC.search(text, match.end())
        own_line = own.group(1).strip() if own and own.start() - match.end() < 400 else line
        entries.append(Entry(canonical(match.group(1)), path, module, own_line, setting))
    return entries


def index(kind: str) -> dict[str, Entry]:
    """Every name of a kind, found by reading text; nothing is imported. A plug-in's name that we also have is
    prefixed."""
    entries: dict[str, Entry] = {}
    for folder in search_folders(kind):
        for path in sorted(folder.glob("*.py")) if not plugins.owns(folder) else []:
            if not path.stem.startswith("_"):
                for entry in _scan_file(kind, path):
                    entries.setdefault(entry.name, entry)
    own = entries.keys() | _registered[kind].keys()
    for name, entry in plugin_index(kind).items():
        name = PLUGIN + name if name in own else name
        entries[name] = replace(entry, name=name, line=f"{entry.line} [{entry.path}]".strip())
    for path in [p for folder in plugins.surface(PACKAGES[kind]) for p in sorted(Path(folder).glob("*.py"))]:
        for entry in _scan_file(kind, path):
            entries.setdefault(entry.name, entry)  # names that a checkout also has belong to the checkout
    return entries


def plugin_index(kind: str) -> dict[str, Entry]:
    """The names that plug-ins define, without prefix."""
    found: dict[str, Entry] = {}
    for path in plugins.files(kind):
        for entry in _scan_file(kind, path):
            found.setdefault(entry.name, entry)
    return found


def plain_name(kind: str, name: str) -> str:
    """The name without "plugin:" if only a plug-in has it."""
    return _plain(canonical(name), index(kind)) if plugins.used() else canonical(name)


def _plain(key: str, entries: dict[str, Entry]) -> str:
    bare = key.removeprefix(PLUGIN)
    return bare if key not in entries and bare in entries and plugins.owns(entries[bare].path) else key


def file_of(kind: str, name: str) -> Path | None:
    """The file of a name; None for one registered at run time."""
    entries = index(kind)
    entry = entries.get(_plain(canonical(name), entries))
    return entry.path if entry else None


def names(kind: str) -> list[str]:
    """All names of a kind, sorted: those found in files and those registered at run time."""
    return sorted(index(kind).keys() | _registered[kind].keys())


def unknown(kind: str, name: str) -> UserError:
    """The error for a name that does not exist, with the closest ones that do."""
    known = names(kind)
    if canonical(name).startswith(PLUGIN):
        return UserError(
            f"no plug-in defines a {kind} '{shown(canonical(name).removeprefix(PLUGIN))}': pass its file "
            "or folder as --plugins"
        )
    close = difflib.get_close_matches(canonical(name), known, n=3, cutoff=0.5)
    hint = f" Closest: {', '.join(close)}." if close else ""
    return UserError(f"unknown {kind} '{shown(name)}'.{hint} `python main.py --list {kind}s` shows all {len(known)}.")


def exists(kind: str, name: str) -> bool:
    """Whether the name is known; a file named after it is found without a scan."""
    key = canonical(name)
    by_rule = os.path.isfile(ROOT / PACKAGES[kind] / f"{key.replace('-', '_')}.py")  # False for what cannot be a path
    return key in _registered[kind] or by_rule or file_of(kind, key) is not None


def load(kind: str, name: str) -> Any:
    """Import the one file that holds `name` and return its class or function."""
    key = canonical(name)
    if key in _registered[kind]:
        return _registered[kind][key]
    module = _module_of(kind, key)
    if module is None:
        entry = plugin_index(kind)[key.removeprefix(PLUGIN)]
        return _member(plugins.load(entry.path, PACKAGES[kind], f"{kind} '{key}'"), kind, entry.name)
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in OWN_PACKAGES or not package:
            raise
        raise plugins.missing_package(error, f"{kind} '{key}'") from error
    return _registered[kind][key] if key in _registered[kind] else _member(loaded, kind, key)


def variant(found: Any, value: str | None) -> Any:
    """Of a class that builds several kinds of stream: the one for a value of the flag that decides, VARIANT_FLAG."""
    return found.variant(value) if value and hasattr(found, "VARIANT_FLAG") else found


def current_name(name: str | None) -> str | None:
    """The name of a method here, with a note on stderr if it was requested by another name."""
    new = RENAMED.get(canonical(name or ""))
    if name is None or new is None or exists("model", name):
        return name
    print(f"note: model {canonical(name)} is {new} here: {index('model')[new].line}", file=sys.stderr)
    return new


def _member(loaded: ModuleType, kind: str, key: str) -> Any:
    """The class or function of a module that has the name."""
    for obj in vars(loaded).values():
        if callable(obj) and canonical(str(vars(obj).get("NAME", "") if hasattr(obj, "__dict__") else "")) == key:
            return obj
    raise UserError(f"{loaded.__file__} does not define a {kind} with NAME = '{key}'")


def _module_of(kind: str, key: str) -> str | None:
    """The module of one of our names; None for a plug-in's."""
    stem = key.replace("-", "_")
    for folder in search_folders(kind):
        path = folder / f"{stem}.py"
        if os.path.isfile(path) and not plugins.owns(path) and any(e.name == key for e in _scan_file(kind, path)):
            return f"{PACKAGES[kind]}.{stem}"
    entries = index(kind)
    name = _plain(canonical(key), entries)
    if name not in entries:
        raise unknown(kind, key)
    return None if plugins.owns(entries[name].path) else entries[name].module
