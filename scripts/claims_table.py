"""The table behind scripts/claims.py: scripts/claims/<name>.yaml, and the runs that it asks for; all errors at once.

    title: ...                 about: text below the verdicts             chosen: which choice was made on which seed
    seeds: [0, 1, 2]           common: flags of all runs                  reported: [lines with published numbers]
    worlds: {name: flags}      pool: {name: [world, world]}  worlds of one seed that are averaged, not counted twice
    arms: {name: flags} or {name: {run: flags, worlds: [..]}}    later flags win: common, world, arm
    measure: {column: key of the record's summary}  also key@3 (score of the last row on test set 3) and cpu_s
    lower: [columns in which less is better]
    claims: [{say: text, better: arm, worse: [arms], on: column, by: 0, worlds: [..], ratio: false}]
    figure: {kind: curves|bars|against, ...} or a list of these (scripts/claims_figure.py)
    quick: {arms: [..], worlds: [..], seeds: [0], more: flags}    what --quick runs; by default the arms of the claims

    flags: {name: text}        flags that several arms share: {name} in an arm is replaced by the text

In flags {seed} is the seed and {order:6} a shuffle of 0 to 5 drawn by it.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.sweeps import grid, plan
from scripts.sweeps.grid import filled, merged, unknown
from utils.errors import UserError

FOLDER = Path(__file__).resolve().parent / "claims"
KINDS: dict[str, tuple[type, ...]] = {
    "title": (str,),
    "about": (str,),
    "chosen": (str,),
    "reported": (list,),
    "seeds": (list,),
    "common": (str,),
    "flags": (dict,),
    "worlds": (dict,),
    "pool": (dict, list),
    "arms": (dict,),
    "measure": (dict,),
    "lower": (list,),
    "claims": (list,),
    "figure": (dict, list),
    "quick": (dict,),
}
NEEDED = ("title", "seeds", "worlds", "arms", "measure")
OF_A_CLAIM = {"say", "better", "worse", "on", "by", "worlds", "ratio"}
OF_QUICK = {"arms", "worlds", "seeds", "more"}
OF_A_FIGURE = {
    "curves": {"score", "arms", "world", "over"},
    "bars": {"measure", "arms", "worlds"},
    "against": {"x", "y", "lines", "world"},
}


@dataclass(frozen=True)
class Claim:
    say: str
    better: str
    worse: tuple[str, ...]
    on: str
    by: float
    groups: tuple[str, ...]
    ratio: bool = False


@dataclass
class Table:
    name: str
    title: str
    seeds: list[int]
    common: str
    worlds: dict[str, str]
    groups: dict[str, tuple[str, ...]]  # worlds that are averaged within a seed; most are alone
    arms: dict[str, str]
    where: dict[str, tuple[str, ...]]  # arm -> its worlds
    measures: dict[str, str]
    claims: list[Claim]
    lower: tuple[str, ...] = ()
    figures: list[dict] = field(default_factory=list)
    quick: dict = field(default_factory=dict)
    about: str = ""
    chosen: str = ""
    reported: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job(plan.Job):
    arm: str = ""
    world: str = ""
    seed: int = 0


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_table(name: str, folder: Path = FOLDER) -> Table:
    path = folder / f"{name}.yaml"
    if not path.is_file():
        close = difflib.get_close_matches(name, [p.stem for p in folder.glob("*.yaml")], n=1)
        raise UserError(f"there is no {path}; {f'closest: {close[0]}' if close else 'give the name of a file there'}")
    found = grid.read_yaml(path)
    problems = wrong_keys(found)
    if not problems:
        problems, table = checked(name, found)
    if problems:
        raise UserError("\n".join(f"{path}: {line}" for line in problems))
    return table


def wrong_keys(found: Any) -> list[str]:
    if not isinstance(found, dict):
        return ["it is not a mapping of keys to values"]
    problems = [unknown(key, KINDS, "key") for key in found if key not in KINDS]
    problems += [f"{key} is missing" for key in NEEDED if not found.get(key)]
    for key, kinds in KINDS.items():
        if found.get(key) is not None and not isinstance(found[key], kinds):
            problems.append(f"{key} is a {type(found[key]).__name__}, not a {' or '.join(k.__name__ for k in kinds)}")
    seeds = found.get("seeds")
    if isinstance(seeds, list) and not all(type(s) is int and s >= 0 for s in seeds):
        problems.append(f"seeds: {seeds} are not all whole numbers from 0 on")
    if isinstance(seeds, list) and len({str(s) for s in seeds}) < len(seeds):
        problems.append(f"seeds: {seeds} has one of them twice")
    return problems


def checked(name: str, found: dict) -> tuple[list[str], Table]:
    """Errors of a table whose keys are right, and the table."""
    problems: list[str] = []
    worlds = {str(k): text_of(v, f"worlds: {k}", problems) for k, v in found["worlds"].items()}
    groups = pooled(worlds, found.get("pool") or {}, problems)
    shared = {str(k): text_of(v, f"flags: {k}", problems) for k, v in (found.get("flags") or {}).items()}
    arms, where = {}, {}
    for arm, value in found["arms"].items():
        given = value if isinstance(value, dict) else {"run": value}
        problems += [
            unknown(key, ("run", "worlds"), f"arms: {arm}: key") for key in given if key not in ("run", "worlds")
        ]
        arms[str(arm)] = with_shared(text_of(given.get("run"), f"arms: {arm}", problems), shared)
        where[str(arm)] = tuple(map(str, given.get("worlds") or worlds))
        problems += [unknown(w, worlds, f"arms: {arm}: world") for w in where[str(arm)] if w not in worlds]
    measures = {str(k): text_of(v, f"measure: {k}", problems) for k, v in found["measure"].items()}
    lower = tuple(map(str, found.get("lower") or ()))
    problems += [unknown(column, measures, "lower: column") for column in lower if column not in measures]
    claims = [claim_of(c, i, arms, measures, groups, problems) for i, c in enumerate(found.get("claims") or (), 1)]
    quick = found.get("quick") or {}
    problems += [unknown(key, OF_QUICK, "quick: key") for key in quick if key not in OF_QUICK]
    for kind, known in (("arms", arms), ("worlds", worlds)):
        problems += [unknown(v, known, f"quick: {kind}:") for v in quick.get(kind) or () if v not in known]
    figure = found.get("figure") or []
    figures = [figure] if isinstance(figure, dict) else figure
    for number, drawn in enumerate(figures, 1):
        problems += wrong_figure(drawn, f"figure {number}", arms, measures, [*groups, *worlds])
    table = Table(
        name=name,
        title=found["title"],
        seeds=list(found["seeds"]),
        common=found.get("common") or "",
        worlds=worlds,
        groups=groups,
        arms=arms,
        where=where,
        measures=measures,
        claims=[c for c in claims if c],
        lower=lower,
        figures=figures,
        quick=quick,
        about=found.get("about") or "",
        chosen=found.get("chosen") or "",
        reported=list(found.get("reported") or ()),
    )
    return problems, table


def wrong_figure(drawn: Any, what: str, arms, measures, worlds) -> list[str]:
    if not isinstance(drawn, dict) or drawn.get("kind") not in OF_A_FIGURE:
        return [f"{what} needs a kind: {', '.join(OF_A_FIGURE)}"]
    allowed = OF_A_FIGURE[drawn["kind"]] | {"kind", "title", "xlabel", "ylabel"}
    problems = [unknown(key, allowed, f"{what}: key") for key in drawn if key not in allowed]
    lines = drawn.get("lines") or {}
    named = [*(drawn.get("arms") or ()), *(arm for own in lines.values() for arm in own)]
    problems += [unknown(arm, arms, f"{what}: arm") for arm in named if arm not in arms]
    columns = [drawn[key] for key in ("measure", "x", "y") if drawn.get(key)]
    problems += [unknown(column, measures, f"{what}: column") for column in columns if column not in measures]
    shown = [*(drawn.get("worlds") or ()), *([drawn["world"]] if "world" in drawn else ())]
    return problems + [unknown(w, worlds, f"{what}: world") for w in map(str, shown) if w not in worlds]


def text_of(value: Any, what: str, problems: list[str]) -> str:
    if not isinstance(value, str) or not value.strip():
        problems.append(f"{what} is {value!r}, not a text")
        return ""
    return value


def with_shared(flags: str, shared: Mapping[str, str]) -> str:
    """An arm's flags with the shared ones in the place of their {name}."""
    for name, text in shared.items():
        flags = flags.replace(f"{{{name}}}", text)
    return flags


def pooled(worlds: Mapping[str, str], pool: Any, problems: list[str]) -> dict[str, tuple[str, ...]]:
    """Groups of worlds: those of `pool`, and every other world alone."""
    given = pool if isinstance(pool, dict) else {" + ".join(map(str, pool)): pool}
    groups = {str(name): tuple(map(str, members)) for name, members in given.items() if members}
    inside = [w for members in groups.values() for w in members]
    problems += [unknown(w, worlds, "pool: world") for w in inside if w not in worlds]
    problems += [f"pool: world '{w}' is in two groups" for w in sorted(set(inside)) if inside.count(w) > 1]
    return groups | {w: (w,) for w in worlds if w not in inside}


def claim_of(given: Any, number: int, arms, measures, groups, problems: list[str]) -> Claim | None:
    what = f"claim {number}"
    if not isinstance(given, dict):
        problems.append(f"{what} is not a mapping")
        return None
    wrong = [unknown(key, OF_A_CLAIM, f"{what}: key") for key in given if key not in OF_A_CLAIM]
    wrong += [f"{what}: {key} is missing" for key in ("say", "better", "worse", "on") if not given.get(key)]
    worse = given.get("worse") or []
    worse = [worse] if isinstance(worse, str) else worse
    wrong += [unknown(arm, arms, f"{what}: arm") for arm in [given.get("better"), *worse] if arm and arm not in arms]
    if given.get("on") and given["on"] not in measures:
        wrong.append(unknown(given["on"], measures, f"{what}: column"))
    by = given.get("by", 0)
    if type(by) not in (int, float):
        wrong.append(f"{what}: by is {by!r}, not a number")
    chosen = []
    for world in map(str, given.get("worlds") or groups):
        own = world if world in groups else next((g for g, members in groups.items() if world in members), None)
        if own is None:
            wrong.append(unknown(world, [*groups, *(w for m in groups.values() for w in m)], f"{what}: world"))
        elif own not in chosen:
            chosen.append(own)
    problems += wrong
    return (
        None
        if wrong
        else Claim(
            given["say"], given["better"], tuple(worse), given["on"], by, tuple(chosen), bool(given.get("ratio"))
        )
    )


def jobs_of(
    table: Table,
    results: Path,
    seeds: Iterable[int],
    arms: Iterable[str] | None = None,
    worlds: Iterable[str] | None = None,
    more: str = "",
) -> list[Job]:
    """The runs of some arms, each understood by main.py's own parser; one UserError lists all that are not."""
    found: list[Job] = []
    known = plan.Known(results)
    problems: dict[str, None] = {}
    of_config: dict[str, str] = {}
    for seed in seeds:
        for world in worlds or table.worlds:
            for arm in arms or table.arms:
                if world not in table.where[arm]:
                    continue
                text = [table.common, table.worlds[world], table.arms[arm], more]
                argv = merged(*(filled(t, seed) for t in text), ["--seed", str(seed)])
                argv += ["--resume", "auto", "--non_verbose", "1", "--notes", arm, "--results_path", str(results)]
                try:
                    config = known.config_of(argv)
                except UserError as error:
                    problems |= {f"arm '{arm}' on {world}: {line}": None for line in str(error).split("\n")}
                    continue
                if of_config.setdefault(config.sha256, arm) != arm:
                    problems[f"arms '{of_config[config.sha256]}' and '{arm}' are the same run on {world}"] = None
                title = f"{arm} | {world} | seed {seed}"
                found.append(Job(title, argv, *config, results, arm=arm, world=world, seed=seed))
    if problems:
        raise UserError("\n".join(problems))
    known.keep()
    return found
