"""Chooses values of methods on validation images of another seed, with one budget for all (scripts/choose.yaml).

    python scripts/choose.py ncm ridge derpp            runs the trials and prints what is best
    python scripts/choose.py ncm ridge derpp --write    also writes it into models/config/<model>.yaml, with its source

The first trial is the method's present values, the others are drawn; every method gets as many. Trials are runs of
main.py as those of scripts/claims.py: finished ones are not started again. A trial that fails counts.
"""

import argparse
import math
import random
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models import get_model_names
from scripts import claims
from scripts.claims_table import Job
from scripts.records import Run, markdown
from scripts.sweeps import plan
from scripts.sweeps.grid import filled, merged
from utils import cli
from utils.cli import registry, shell
from utils.engine.launch import git_commit
from utils.errors import UserError, disk_errors

SPACE = Path(__file__).resolve().with_suffix(".yaml")
Values = dict[str, Any]


class Space(NamedTuple):
    """A file such as scripts/choose.yaml."""

    trials: int
    seed: int
    world: str
    score: str
    default: dict[str, Any]
    methods: dict[str, dict[str, Any]]

    @property
    def dataset(self) -> str:
        words = self.world.split()
        return words[words.index("--dataset") + 1]

    def of(self, model: str) -> dict[str, Any]:
        return self.default | self.methods.get(model, {})


class Outcome(NamedTuple):
    """The trials of a method: values and score of each, None where it failed."""

    tried: list[tuple[Values, float | None]]

    @property
    def best(self) -> tuple[Values, float] | None:
        """The highest score; of equal ones the first, so that present values stay unless others are better."""
        scored = [(values, score) for values, score in self.tried if score is not None]
        return max(scored, key=lambda pair: pair[1], default=None)


def read_space(path: Path) -> Space:
    try:
        space = Space(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise UserError(f"{path}: {told}; it needs {', '.join(Space._fields)}, as scripts/choose.yaml") from None
    problems = [f"{path}: methods: there is no method {m}" for m in space.methods if m not in get_model_names()]
    for model, ranges in {"default": space.default, **space.methods}.items():
        problems += [f"{path}: {model}: {flag}: {r!r} is no range" for flag, r in ranges.items() if not is_range(r)]
    if problems:
        raise UserError("\n".join(problems))
    return space


def is_range(value: Any) -> bool:
    """[choices], {times: factor above 1}, or {low: a, high: b} with 0 < a < b."""
    if isinstance(value, dict) and set(value) == {"times"}:
        return value["times"] > 1
    if isinstance(value, dict) and set(value) == {"low", "high"}:
        return 0 < value["low"] < value["high"]
    return isinstance(value, list) and len(value) > 1


def drawn(range_: Any, present: Any, rng: random.Random) -> Any:
    """A value of a range, two digits of it."""
    if isinstance(range_, list):
        return rng.choice(range_)
    times = range_.get("times")
    low, high = (present / times, present * times) if times else (range_["low"], range_["high"])
    return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.2g}")


def present_values(model: str, space: Space) -> Values:
    """What a run of the method uses now, for the flags of its space that it has and that mean something."""
    args = vars(cli.parse(argv_of(model, space, {})).args)
    idle = set(getattr(registry.load("model", model), "IDLE_FLAGS", {}))
    found = {flag: args[flag] for flag in space.of(model) if flag in args and flag not in idle}
    for flag in space.methods.get(model, {}):
        if flag not in found:
            raise UserError(f"model {model} has no flag --{flag}: take it out of scripts/choose.yaml")
    return {flag: value for flag, value in found.items() if value is not None}


def argv_of(model: str, space: Space, values: Values) -> list[str]:
    """A trial's command line; where the method has a block for `--model_config best`, on top of that."""
    best = ["--model_config", "best"] if space.dataset in blocks_of(model) else []
    own = [word for flag, value in values.items() for word in (f"--{flag}", str(value))]
    base = filled(space.world, space.seed)
    return merged(["--model", model], base, best, ["--seed", str(space.seed)], own)


def trials_of(model: str, space: Space) -> list[Values]:
    """The present values, then draws that depend on the space's seed and the method alone."""
    present, ranges = present_values(model, space), space.of(model)
    if not present:
        return []
    found = [present]
    for trial in range(1, space.trials):
        rngs = {flag: random.Random(f"{space.seed} {model} {trial} {flag}") for flag in present}
        found.append({flag: drawn(ranges[flag], value, rngs[flag]) for flag, value in present.items()})
    return found


def jobs_of(model: str, space: Space, results: Path) -> list[tuple[Values, Job]]:
    found, known = [], plan.Known(results)
    for number, values in enumerate(trials_of(model, space)):
        argv = argv_of(model, space, values) + ["--resume", "auto", "--non_verbose", "1", "--notes", f"trial {number}"]
        argv += ["--results_path", str(results)]
        title, config = f"{model}, trial {number}", known.config_of(argv)
        job = Job(title, argv, *config, results, arm=title, world=space.dataset, seed=space.seed)
        found.append((values, job))
    known.keep()
    return found


def outcome_of(jobs: list[tuple[Values, Job]], done: Mapping[str, Run], score: str) -> Outcome:
    """Scores of the trials that finished."""
    found = []
    for values, job in jobs:
        summary = done[job.config].summary if job.config in done else None
        found.append((values, (summary or {}).get(score)))
    return Outcome(found)


def config_file(model: str) -> Path:
    return registry.ROOT / "models" / "config" / f"{model.replace('-', '_')}.yaml"


def blocks_of(model: str) -> dict:
    path = config_file(model)
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def written(text: str, dataset: str, values: Values, source: str) -> str:
    """A config file with these values in the data set's block, the rest of it as it was. The block is that of
    `--model_config best` if there is one, else the one under `default_for`; what shares it by an anchor follows."""
    content = yaml.safe_load(text) or {}
    own = dataset in content
    old = dict((content if own else content.get("default_for") or {}).get(dataset) or {})
    indent = "" if own else "  "
    block = re.search(rf"^{indent}{re.escape(dataset)}:(?P<anchor> &\w+)?.*\n?(?:{indent}[ ]+.*\n?)*", text, re.M)
    anchor = (block["anchor"] or "") if block else ""
    inline = yaml.safe_dump(old | values, default_flow_style=True, sort_keys=False, width=10**6).strip()
    line = f"{indent}{dataset}:{anchor} {inline}  # {source}\n"
    if block:
        new = text[: block.start()] + line + text[block.end() :]
    elif head := re.search(r"^default_for:.*\n", text, re.M):
        new = text[: head.end()] + line + text[head.end() :]
    else:
        new = (text.rstrip("\n") or "default: {}") + f"\ndefault_for:\n{line}"
    try:
        fits = agrees(yaml.safe_load(new), content, dataset, old | values, own, bool(anchor))
    except yaml.YAMLError:
        fits = False
    if not fits:
        raise UserError(f"the file cannot be edited without changing something else: write {inline} by hand")
    return new


def agrees(found: dict, before: dict, dataset: str, wanted: Values, own: bool, shared: bool) -> bool:
    """Whether the block has the values, and everything else what it had; with an anchor, others may follow."""
    sides = [dict(side) if own else dict(side.get("default_for") or {}) for side in (found, before)]
    right = sides[0].pop(dataset, None) == wanted
    sides[1].pop(dataset, None)
    rest = [{} if own else {k: v for k, v in side.items() if k != "default_for"} for side in (found, before or {})]
    kept = all(sides[0].get(k) == v or shared for k, v in sides[1].items()) and sides[0].keys() == sides[1].keys()
    return right and kept and (own or {k: rest[0].get(k) for k in rest[1]} == rest[1])


def write(model: str, space: Space, values: Values) -> Path:
    path = config_file(model)
    source = f"best of {space.trials} trials on validation images, seed {space.seed}: scripts/choose.py"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    with disk_errors(path):
        path.write_text(written(text, space.dataset, values, source), encoding="utf-8")
    return path


def shown(values: Values) -> str:
    return " ".join(
        f"--{flag} {value:g}" if isinstance(value, float) else f"--{flag} {value}" for flag, value in values.items()
    )


def report(outcomes: Mapping[str, Outcome], space: Space) -> str:
    """A row per method: present and best values with their scores, and the trials that failed."""
    rows = []
    for model, outcome in outcomes.items():
        (present, before), best = outcome.tried[0], outcome.best
        score = "failed" if before is None else f"{before:.1f}"
        chosen = [shown(best[0]), f"{best[1]:.1f}"] if best else ["none finished", ""]
        failed = sum(score is None for _, score in outcome.tried)
        rows.append([model, shown(present), score, *chosen, len(outcome.tried), failed])
    head = ["method", "present", space.score, "best", space.score, "trials", "not finished"]
    return markdown(head, rows)


def work(args: argparse.Namespace) -> int:
    space, results = read_space(args.space), args.results_path.resolve()
    jobs = {model: jobs_of(model, space, results) for model in args.models}
    for model in [model for model, found in jobs.items() if not found]:
        print(f"{model}: nothing to choose")
        del jobs[model]
    with disk_errors(results):
        results.mkdir(parents=True, exist_ok=True)
    every = {job.config: job for found in jobs.values() for _, job in found}
    waiting = [job for config, job in every.items() if config not in claims.finished(results)]
    code = claims.launch(waiting, results, args.jobs) if args.jobs > 0 and waiting else 0
    if code > 1:  # stopped
        return code
    done = claims.finished(results)
    outcomes = {model: outcome_of(found, done, space.score) for model, found in jobs.items()}
    print(report(outcomes, space) if outcomes else "nothing to choose")
    print(f"seed {space.seed}, {space.trials} trials each, commit {(git_commit() or 'unknown')[:10]}")
    for model, outcome in outcomes.items() if args.write else ():
        if outcome.best:
            print(f"{write(model, space, outcome.best[0])} written")
    return code


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=get_model_names(), metavar="MODEL")
    parser.add_argument("--write", action="store_true", help="write the best values into models/config")
    parser.add_argument("--space", type=Path, default=SPACE, help="default scripts/choose.yaml")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; 0 reads what is there")
    parser.add_argument("--results_path", type=Path, default=registry.ROOT / "runs" / "choose")
    args = parser.parse_args(argv)
    try:
        return work(args)
    except UserError as error:
        return cli.fail(error)


if __name__ == "__main__":
    sys.exit(shell.exits(main))
