"""From lines to jobs: each is checked by main.py's own parser and launch checks, and gets the configuration hash that
its record will have. What was understood once is remembered, so that a finished sweep is recognized without torch."""

import contextlib
import functools
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from scripts.sweeps.grid import Line, flags_of
from utils import cli, json_text
from utils.cli.registry import ROOT
from utils.errors import UserError

HOME = ".sweep"  # in a folder of records: locks, logs and what is remembered
SOURCES = ("*.py", "*.yaml", "*.txt")  # files that decide what a command line means
NO_RECORD = ("help", "h", "list", "show_config")


Key = tuple[str, str]  # a configuration and the folder of its results


class Config(NamedTuple):
    """What main.py would make of a command line."""

    sha256: str
    dataset: str
    model: str


@dataclass(frozen=True)
class Job:
    """One configuration to run."""

    title: str
    argv: list[str]
    config: str
    dataset: str
    model: str
    results: Path
    facts: dict = field(default_factory=dict)  # further entries of its lines in the ledger

    def __str__(self) -> str:
        return self.title

    @property
    def key(self) -> Key:
        return self.config, str(self.results)

    @property
    def home(self) -> Path:
        return self.results / HOME

    @property
    def data(self) -> tuple[str, str]:
        """Runs with the same one read the same files."""
        return self.dataset, dict(flags_of(self.argv)).get("base_path", "")


def parsed(argv: list[str]) -> Config:
    """The configuration of a command line; UserError lists what is wrong with it."""
    from utils.engine import launch  # imports torch
    from utils.engine.record import config_hash

    found = cli.parse(argv)
    if found is None:
        raise UserError("it only prints a text")
    launch.check(found.args, found.model_class, found.dataset_class)
    return Config(config_hash(launch.fill_in(found.args)), found.args.dataset, found.args.model)


@functools.cache
def sources() -> str:
    """sha256 of everything in this checkout that decides what a command line means."""
    digest = hashlib.sha256(f"{sys.version} {sys.prefix} {Path.home()}".encode())
    for package in ("main.py", "utils", "datasets", "models", "backbone"):
        top = ROOT / package
        files = [top] if top.is_file() else sorted(p for kind in SOURCES for p in top.rglob(kind))
        for path in files:
            digest.update(f"\n{path.relative_to(ROOT)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Known:
    """Command line -> configuration, kept beside the results for as long as the sources are the same."""

    def __init__(self, results: Path):
        self.path = results / HOME / "known.json"
        try:
            found = json_text.parse(self.path.read_bytes())
        except (OSError, ValueError):
            found = None
        fits = isinstance(found, dict) and found.get("sources") == sources() and isinstance(found.get("lines"), dict)
        self.lines: dict[str, list[str]] = found["lines"] if fits else {}
        self.new = False

    def config_of(self, argv: list[str]) -> Config:
        key = hashlib.sha256(json.dumps(argv).encode()).hexdigest()
        kept = self.lines.get(key)
        if isinstance(kept, list) and len(kept) == 3 and all(isinstance(text, str) for text in kept):
            return Config(*kept)
        found = parsed(argv)
        if "plugins" not in dict(flags_of(argv)):  # their files are not among the sources
            self.lines[key], self.new = list(found), True
        return found

    def keep(self) -> None:
        """Write what is new; another sweep that writes at the same time loses nothing but time."""
        if not self.new:
            return
        text = json.dumps({"sources": sources(), "lines": self.lines})
        with contextlib.suppress(OSError):  # it only saves time
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as file:
                file.write(text)
            os.replace(file.name, self.path)


def completed(argv: list[str], results: Path) -> list[str]:
    """The command line that is started: it resumes, and draws no progress bars."""
    given = dict(flags_of(argv))
    if wrong := [name for name in NO_RECORD if name in given]:
        raise UserError(f"--{wrong[0]} only prints a text")
    if given.get("disable_log", "0").lower() not in {"0", "false", "no", "n", "f"}:
        raise UserError("--disable_log 1: a sweep knows what is finished by the records")
    added = {"resume": "auto", "non_verbose": "1", "results_path": str(results)}
    return [*argv, *(word for flag, value in added.items() if flag not in given for word in (f"--{flag}", value))]


def jobs_of(lines: Iterable[Line], results: Path) -> tuple[list[Job], list[str]]:
    """The different configurations, and the titles of lines that repeat one; one UserError lists all wrong lines."""
    known = Known(results)
    jobs: dict[Key, Job] = {}
    problems: dict[str, None] = {}
    repeated = []
    for line in lines:
        try:
            argv = completed(line.argv, results)
            config = known.config_of(argv)
        except UserError as error:
            problems |= {f"{line.title}: {told}": None for told in str(error).split("\n")}
            continue
        folder = Path(dict(flags_of(argv))["results_path"]).expanduser()
        job = Job(line.title, argv, config.sha256, config.dataset, config.model, folder)
        if jobs.setdefault(job.key, job) is not job:
            repeated.append(line.title)
    if problems:
        raise UserError("\n".join(problems))
    known.keep()
    return list(jobs.values()), repeated
