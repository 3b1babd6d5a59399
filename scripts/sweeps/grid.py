"""A grid as command lines of main.py: a YAML of axes, a protocol, or a file of `python main.py ...` lines.

    about: one line                  results: folder of the records (default runs)
    flags: flags of every run; {seed}, {order:6} (a shuffle of 0 to 5 drawn by the seed) and {axis} are replaced
    seeds: 3                         0, 1, 2; or a list
    axes:
      lr: [0.1, 0.03]                --lr 0.1, then --lr 0.03
      arm: {full: --exemplar_aug none, masked: ""}    names for flags; {arm} in flags is the name
    blocks: [--model er, {flags: --model der, axes: {..}}]    each has what stands outside; later flags win
    exclude: [{model: er, lr: [0.1, 0.3]}]    runs whose axes (or flags) have these values

A file that is a list is `blocks` alone, and a block that is a text is `flags` alone.
"""

import difflib
import itertools
import random
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from utils.cli import protocols
from utils.cli.parser import is_flag
from utils.errors import UserError

KEYS: dict[str, tuple[type, ...]] = {
    "flags": (str,),
    "seeds": (int, list),
    "axes": (dict,),
    "exclude": (list,),
    "blocks": (list,),
}
TOP = {"about": (str,), "results": (str,)}
BOOLEAN = "tag:yaml.org,2002:bool"
PROTOCOL = "protocol:"


class Loader(yaml.SafeLoader):
    """`on` and `no` are words, and a key given twice is an error."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag != BOOLEAN]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.MarkedYAMLError(problem=f"'{twice[0]}' is there twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(BOOLEAN, re.compile("^(true|false)$"), list("tf"))


class Line(NamedTuple):
    """One run that was asked for, and what it is called in messages."""

    title: str
    argv: list[str]


class Grid(NamedTuple):
    name: str
    results: str | None
    lines: list[Line]


def unknown(name: Any, known: Iterable[str], what: str) -> str:
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.4)
    return f"{what} '{name}' does not exist{f'; closest: {close[0]}' if close else ''}"


def read_yaml(path: Path) -> Any:
    """A YAML file; its errors are one line with the place."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{place}: {getattr(error, 'problem', None) or error}") from None


def read(name: str, seeds: Sequence[int] | None = None, more: Sequence[str] = ()) -> Grid:
    """The runs of a grid; `seeds` replaces its seeds, and the flags `more` win over those of every run."""
    path, results = Path(name), None
    if name.startswith(PROTOCOL):
        protocol = name.removeprefix(PROTOCOL)
        lines, stem = of_protocol(protocol, seeds), protocol.replace("/", "_")
        results = f"runs/paper_table/{protocol}"
    elif not path.is_file():
        raise UserError(f"{path} is not a file; give a YAML grid, a file of `python main.py ...` lines, or {PROTOCOL}X")
    elif path.suffix in {".yaml", ".yml"}:
        lines, results = of_yaml(path, seeds)
        stem = path.stem
    elif seeds:
        raise UserError(f"--seeds needs a YAML grid or a protocol; {path} is a file of commands that have their own")
    else:
        lines, stem = of_commands(path), path.stem
    return Grid(stem, results, [Line(line.title, merged(line.argv, list(more))) for line in lines])


# a file of commands


def of_commands(path: Path) -> list[Line]:
    """Every line of a file that is not blank or a comment; a line that ends with a backslash goes on in the next."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None
    found, problems, whole, begun = [], [], "", 0
    for number, text in enumerate(texts, 1):
        begun = begun or number
        whole += text.rstrip().removesuffix("\\") + " "
        if text.rstrip().endswith("\\") and number < len(texts):
            continue
        title, told = f"line {begun}", whole
        whole, begun = "", 0
        try:
            words = shlex.split(told, comments=True)
        except ValueError as error:
            problems.append(f"{title}: {error}")
            continue
        at = next((n for n, word in enumerate(words) if Path(word).name == "main.py"), None)
        if words and (at is None or at > 1 or (at == 1 and not Path(words[0]).name.startswith("python"))):
            problems.append(f"{title}: '{told.strip()[:60]}' is not `python main.py` with flags")
        elif words and at is not None:
            found.append(Line(title, words[at + 1 :]))
    if problems or not found:
        raise UserError("\n".join(f"{path}, {p}" for p in problems) or f"{path} does not have a single command")
    return found


def of_protocol(name: str, seeds: Sequence[int] | None) -> list[Line]:
    """The table of a published protocol: every data set x method x seed."""
    sets, models = protocols.table(name, "datasets"), protocols.table(name, "models")
    chosen = [str(s) for s in seeds or ()] or protocols.table(name, "seeds")
    if not sets or not models or not chosen:
        raise UserError(f"protocol {name} does not name a table of models and seeds; write a grid with --protocol")
    return [
        Line(f"{d} {m} seed {s}", ["--protocol", name, "--dataset", d, "--model", m, "--seed", s])
        for d, m, s in itertools.product(sets, models, chosen)
    ]


# a YAML


@dataclass(frozen=True)
class Block:
    """What a block has from the file and the blocks around it."""

    where: str = ""
    parts: tuple = ()  # texts of flags and axes, outer ones first
    seeds: tuple[int, ...] | None = None
    rules: tuple[dict, ...] = ()


@dataclass
class Notes:
    """What was seen while a file was read."""

    problems: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)  # axes and flags
    used: set[int] = field(default_factory=set)  # rules that excluded something


def of_yaml(path: Path, seeds: Sequence[int] | None) -> tuple[list[Line], str | None]:
    found = read_yaml(path)
    top = {"blocks": found} if isinstance(found, list) else found
    if not isinstance(top, dict):
        raise UserError(f"{path} is not a mapping or a list of blocks: see scripts/sweeps/grid.py")
    notes = Notes()
    notes.problems += wrong_keys({k: v for k, v in top.items() if k in TOP}, TOP, "")
    rules = [rule for block in blocks_of(top) for rule in block.get("exclude") or () if isinstance(rule, dict)]
    lines = list(expanded({k: v for k, v in top.items() if k not in TOP}, Block(), notes, seeds))
    if not notes.problems:
        known = notes.keys | {"seed"}
        notes.problems += [unknown(k, known, "exclude: axis") for rule in rules for k in rule if k not in known]
        notes.problems += [
            f"exclude: {rule} excludes nothing"
            for rule in rules
            if id(rule) not in notes.used and set(rule) <= known and not seeds
        ]
    if not lines and not notes.problems:
        notes.problems.append("it does not have a single run")
    if notes.problems:
        raise UserError("\n".join(f"{path}: {p}" for p in dict.fromkeys(notes.problems)))
    return lines, top.get("results")


def blocks_of(block: Any) -> Iterator[dict]:
    if isinstance(block, dict):
        yield block
        for inner in block.get("blocks") if isinstance(block.get("blocks"), list) else ():
            yield from blocks_of(inner)


def wrong_keys(block: dict, known: Mapping[str, tuple[type, ...]], where: str) -> list[str]:
    problems = [unknown(key, [*known, *TOP], f"{where}key") for key in block if key not in known]
    for key, kinds in known.items():
        value = block.get(key)
        if key in block and (not isinstance(value, kinds) or isinstance(value, bool)):
            problems.append(f"{where}{key} is {value!r}, not a {' or '.join(kind.__name__ for kind in kinds)}")
        elif key in block and not value:
            problems.append(f"{where}{key} is empty")
    return problems


def expanded(block: Any, outer: Block, notes: Notes, seeds: Sequence[int] | None) -> Iterator[Line]:
    """The runs of a block and of the blocks in it."""
    block = {"flags": block} if isinstance(block, str) else block
    if not isinstance(block, dict):
        notes.problems.append(f"{outer.where}{block!r} is not a text or a mapping")
        return
    if wrong := wrong_keys(block, KEYS, outer.where):
        notes.problems += wrong
        return
    parts = (*outer.parts, *([block["flags"]] if "flags" in block else ()))
    for name, values in (block.get("axes") or {}).items():
        parts += ({"axis": str(name), "values": axis(str(name), values, outer.where, notes)},)
        notes.keys.add(str(name))
    rules = []
    for rule in block.get("exclude") or ():
        if not isinstance(rule, dict):
            notes.problems.append(f"{outer.where}exclude: {rule!r} is not a mapping of axes to values")
        else:
            rules.append(rule)
    own = outer.seeds if "seeds" not in block else seeds_of(block["seeds"], outer.where, notes)
    inside = replace(outer, parts=parts, seeds=own, rules=(*outer.rules, *rules))
    for number, inner in enumerate(block.get("blocks") or (), 1):
        yield from expanded(inner, replace(inside, where=f"{outer.where}block {number}: "), notes, seeds)
    if "blocks" not in block:
        yield from cells(inside, notes, tuple(seeds) if seeds else own)


def axis(name: str, values: Any, where: str, notes: Notes) -> dict[str, str]:
    """Value, or name, of an axis -> its flags."""
    if not isinstance(values, (list, dict)) or not values:
        notes.problems.append(f"{where}axes: {name} is {values!r}, not a list of values or a mapping of names to flags")
        return {}
    if isinstance(values, dict):
        wrong = [key for key, text in values.items() if not isinstance(text, str)]
        notes.problems += [f"{where}axes: {name}: {key} is {values[key]!r}, not a text of flags" for key in wrong]
        return {str(key): str(text) for key, text in values.items()}
    wrong = [value for value in values if isinstance(value, (dict, list)) or value is None]
    notes.problems += [f"{where}axes: {name}: {value!r} is not a value of a flag" for value in wrong]
    texts = [str(int(v)) if isinstance(v, bool) else str(v) for v in values]
    notes.problems += [f"{where}axes: {name} has {t} twice" for t in sorted(set(texts)) if texts.count(t) > 1]
    return {text: f"--{name} {shlex.quote(text)}" for text in texts}


def seeds_of(given: Any, where: str, notes: Notes) -> tuple[int, ...]:
    found = tuple(range(given)) if isinstance(given, int) else tuple(given)
    if not found or not all(type(s) is int and s >= 0 for s in found) or len(set(found)) < len(found):
        notes.problems.append(f"{where}seeds: {given!r} is neither a number from 1 on nor a list of different seeds")
    return found


def cells(block: Block, notes: Notes, seeds: tuple[int, ...] | None) -> Iterator[Line]:
    """Every combination of a block's axes and seeds that no rule excludes."""
    axes = {part["axis"]: part["values"] for part in block.parts if isinstance(part, dict)}
    for seed in seeds or (None,):
        for values in itertools.product(*axes.values()):
            names = dict(zip(axes, values, strict=True))
            texts = [axes[p["axis"]][names[p["axis"]]] if isinstance(p, dict) else p for p in block.parts]
            try:
                words = [filled(named(text, names), seed) for text in texts]
            except (UserError, ValueError) as error:
                notes.problems.append(f"{block.where}{error}")
                return
            argv = merged(*words, [] if seed is None else ["--seed", str(seed)])
            facts = dict(flags_of(argv)) | names
            notes.keys |= facts.keys()
            rule = next((r for r in block.rules if all(is_one_of(facts.get(str(k)), v) for k, v in r.items())), None)
            if rule is not None:
                notes.used.add(id(rule))
                continue
            shown = [f"{k}={v}" for k, v in names.items()] or [facts.get(k, "") for k in ("model", "dataset")]
            title = " ".join([*shown, *([] if seed is None else [f"seed={seed}"])])
            yield Line(f"{block.where}{title}", argv)


def is_one_of(value: str | None, wanted: Any) -> bool:
    choices = wanted if isinstance(wanted, list) else [wanted]
    return value in [str(int(c)) if isinstance(c, bool) else str(c) for c in choices]


def flags_of(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and first value of each flag."""
    for word, value in zip(argv, [*argv[1:], ""], strict=False):
        if is_flag(word):
            name, equals, own = word.lstrip("-").partition("=")
            yield name.replace("-", "_"), own if equals else value


# words


def named(text: str, names: Mapping[str, str]) -> str:
    """Flags with the names of the axes in the place of {axis}."""
    for name, value in names.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def filled(flags: str, seed: int | None) -> list[str]:
    """The words of some flags for a seed."""
    if seed is not None:
        flags = flags.replace("{seed}", str(seed))
    elif "{seed}" in flags or "{order:" in flags:
        raise UserError("{seed} and {order:N} need `seeds`")
    if wrong := re.search(r"\{(?!order:\d+\})[^}\s]+\}", flags):
        raise UserError(f"{wrong[0]} stands for nothing; write {{seed}}, {{order:6}} or the name of something above it")

    def shuffled(match: re.Match) -> str:
        order = list(range(int(match[1])))
        random.Random(seed).shuffle(order)
        return ",".join(map(str, order))

    return shlex.split(re.sub(r"\{order:(\d+)\}", shuffled, flags))


def merged(*parts: Sequence[str]) -> list[str]:
    """One command line in which a later flag replaces an earlier one; --plugins may be repeated."""
    found: dict[str, list[str]] = {}
    for words in parts:
        flag = ""
        for word in words:
            if is_flag(word):
                flag = word.partition("=")[0].replace("-", "_")
                found[flag] = [*found.get(flag, ()), word] if flag == "__plugins" else [word]
            else:
                found.setdefault(flag, []).append(word)
    return [word for words in found.values() for word in words]
