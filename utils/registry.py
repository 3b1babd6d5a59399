"""Names to files to classes: listing reads text, only what is chosen is imported. Standard library only."""

import difflib
import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"model": "models", "dataset": "datasets", "backbone": "backbone"}
OWN_PACKAGES = {"models", "datasets", "backbone", "utils", "main"}

_registered: dict[str, dict[str, object]] = {kind: {} for kind in PACKAGES}


@dataclass(frozen=True)
class Entry:
    """Where a name lives, read from the text of the file."""

    name: str
    path: Path
    module: str
    line: str  # one-line description
    setting: str  # a dataset's SETTING, empty for the rest


def canonical(name: str) -> str:
    """`ER_ACE` and `er-ace` are one name."""
    return name.strip().lower().replace("_", "-")


def register(kind: str, name: str) -> Callable:
    """Decorator: make a class or function available under `name`."""

    def decorate(obj):
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
        return [Path(p) for p in sys.modules[package].__path__]
    return [ROOT / package]


_NAME = re.compile(r"""^[ \t]+NAME(?:\s*:\s*str)?\s*=\s*["']([^"']+)["']""", re.M)
_SETTING = re.compile(r"""^[ \t]+SETTING(?:\s*:\s*str)?\s*=\s*["']([^"']+)["']""", re.M)
_DOC = re.compile(r'^\s*(?:#.*\n|\s*\n)*[rR]?"""(.*?)(?:\n|""")')
_DEF_DOC = re.compile(r'(?:def|class)\s+\w+[^"]*?:\s*\n\s+[rR]?"""(.*?)(?:\n|""")')


def _scan_file(kind: str, path: Path) -> list[Entry]:
    text = path.read_text(encoding="utf-8", errors="replace")
    module = f"{PACKAGES[kind]}.{path.stem}"
    found = _DOC.match(text)
    line = found.group(1).strip() if found else ""
    setting = _SETTING.search(text)
    setting = setting.group(1) if setting else ""
    entries = [Entry(canonical(n), path, module, line, setting) for n in _NAME.findall(text)]
    for match in re.finditer(rf"""@register_{kind}\(\s*["']([^"']+)["']""", text):
        own = _DEF_DOC.search(text, match.end())
        own_line = own.group(1).strip() if own and own.start() - match.end() < 400 else line
        entries.append(Entry(canonical(match.group(1)), path, module, own_line, setting))
    return entries


def index(kind: str) -> dict[str, Entry]:
    """Every name of a kind, found by reading text; nothing is imported."""
    entries: dict[str, Entry] = {}
    for folder in search_folders(kind):
        for path in sorted(folder.glob("*.py")):
            if not path.stem.startswith("_"):
                for entry in _scan_file(kind, path):
                    entries.setdefault(entry.name, entry)
    return entries


def names(kind: str) -> list[str]:
    """All names of a kind, sorted: those found in files and those registered at run time."""
    return sorted(index(kind).keys() | _registered[kind].keys())


def unknown(kind: str, name: str) -> UserError:
    """The error for a name that does not exist, with the closest ones that do."""
    known = names(kind)
    close = difflib.get_close_matches(canonical(name), known, n=3, cutoff=0.5)
    hint = f" Closest: {', '.join(close)}." if close else ""
    return UserError(f"unknown {kind} '{name}'.{hint} `python main.py --list {kind}s` shows all {len(known)}.")


def exists(kind: str, name: str) -> bool:
    """Whether the name is known; a file named by rule counts without a scan."""
    key = canonical(name)
    by_rule = any((folder / f"{key.replace('-', '_')}.py").is_file() for folder in search_folders(kind))
    return key in _registered[kind] or by_rule or key in index(kind)


def load(kind: str, name: str) -> object:
    """Import the one file that holds `name` and return its class or function."""
    key = canonical(name)
    if key in _registered[kind]:
        return _registered[kind][key]
    module = _module_of(kind, key)
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in OWN_PACKAGES or not package:
            raise
        raise UserError(f"{kind} '{key}' needs the package '{package}', not installed: pip install {package}") from error
    if key in _registered[kind]:
        return _registered[kind][key]
    for obj in vars(loaded).values():
        if isinstance(obj, type) and canonical(str(vars(obj).get("NAME", ""))) == key:
            return obj
    raise UserError(f"{loaded.__file__} defines no {kind} with NAME = '{key}'")


def _module_of(kind: str, key: str) -> str:
    stem = key.replace("-", "_")
    for folder in search_folders(kind):
        if (folder / f"{stem}.py").is_file() and any(e.name == key for e in _scan_file(kind, folder / f"{stem}.py")):
            return f"{PACKAGES[kind]}.{stem}"
    entries = index(kind)
    if key not in entries:
        raise unknown(kind, key)
    return entries[key].module
