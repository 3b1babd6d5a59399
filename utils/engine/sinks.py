"""Where the lines of a record also go: CSV, TensorBoard, Weights & Biases. The record is complete before a sink sees a
line; a sink that fails is closed with one warning and never touches the run."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import inspect
import os
import time
import warnings
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from utils.engine.record_schema import is_number
from utils.settings import option

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}  # optional, by flag
NAMES = ("wandb_entity", "wandb_project", "wandb_name")


def chosen(args: Namespace) -> list[str]:
    """The sinks that were asked for; an entity with a project asks for wandb, as it does in Mammoth."""
    named = option(args, "wandb_entity") and option(args, "wandb_project")
    asked = {name: option(args, name) for name in ("csv", "tensorboard", "wandb")}
    return [name for name, on in asked.items() if on or (name == "wandb" and named)]


def problems(args: Namespace) -> list[str]:
    """What is wrong with the flags of the sinks, one line each."""
    sinks = chosen(args)
    told = [
        f"--{name} 1 needs the package {package}: pip install {package}"
        for name, package in PACKAGES.items()
        if name in sinks and importlib.util.find_spec(package) is None
    ]
    given = [name for name in NAMES if option(args, name) is not None]
    if given and "wandb" not in sinks:
        told.append(f"--{given[0]} needs --wandb 1 (or --wandb_entity with --wandb_project)")
    if sinks and option(args, "disable_log"):
        told.append(f"--{sinks[0]} 1 shows the record: leave out --disable_log")
    return told


def scalars(row: dict) -> Iterator[tuple[str, float]]:
    """Name and value of every number of a line: of a score its mean over the tasks seen, and each test set."""
    scores = row.get("scores") if row["type"] == "task" else {"class_il": row.get("class_il")}
    for name, values in (scores or {}).items():
        numbers = {n: v for n, v in enumerate(values or ()) if is_number(v)}
        seen = [v for n, v in numbers.items() if n <= row["task"]]
        if seen:
            yield name, sum(seen) / len(seen)
        yield from ((f"{name}/task {n + 1}", float(v)) for n, v in numbers.items())
    for group in ("summary", "seconds", "stored_bytes", "probes"):
        for name, value in (row.get(group) or {}).items():
            if is_number(value):
                yield f"{group}/{name}", float(value)
    yield from ((key, float(row[key])) for key in ("ece", "wall_s", "image_forwards") if is_number(row.get(key)))


class CsvSink:
    """scores.csv in the run's folder: a line for each number."""

    def __init__(self, folder: Path, args: Namespace):
        self.file = open(folder / "scores.csv", "w", newline="", encoding="utf-8")
        self.rows = csv.writer(self.file)
        self.rows.writerow(["line", "task", "epoch", "name", "value"])

    def write(self, row: dict, step: int, values: dict[str, float]) -> None:
        place = [row["type"], step + 1, row.get("epoch", "")]
        self.rows.writerows([*place, name, value] for name, value in values.items())
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class TensorBoardSink:
    """Event files in tensorboard/ in the run's folder; the step is the task, starting with 1."""

    def __init__(self, folder: Path, args: Namespace):
        writer = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self.protos = {
            name: importlib.import_module(f"tensorboard.compat.proto.{name}_pb2") for name in ("event", "summary")
        }
        place = folder / "tensorboard"
        for old in place.glob("events.*"):  # of an earlier process of this run: all lines are written again
            old.unlink()
        self.writer = writer.EventFileWriter(str(place))

    def write(self, row: dict, step: int, values: dict[str, float]) -> None:
        Value = self.protos["summary"].Summary.Value
        prefix = "" if row["type"] != "epoch" else f"epochs of task {step + 1}/"
        event = self.protos["event"].Event(wall_time=time.time(), step=row.get("epoch", step + 1))
        event.summary.value.extend([Value(tag=prefix + name, simple_value=value) for name, value in values.items()])
        self.writer.add_event(event)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def has_key(wandb: Any) -> bool:
    """Whether wandb is logged in; it does not ask."""
    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False))
    return bool(wandb.api.api_key)  # older versions


class WandbSink:
    """A run of Weights & Biases with the same id at every start. It never asks: without a key it stays offline."""

    def __init__(self, folder: Path, args: Namespace):
        wandb = importlib.import_module("wandb")
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not has_key(wandb):
            mode = "offline"
            warnings.warn(
                f"wandb has no API key, so it stays offline: `wandb sync {folder / 'wandb'}/*` sends it later"
            )
        self.run = wandb.init(
            entity=option(args, "wandb_entity"),
            project=option(args, "wandb_project", "mammoth-vl"),
            name=option(args, "wandb_name"),
            id=folder.name,
            resume="allow",
            dir=str(folder),
            mode=mode,
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, row: dict, step: int, values: dict[str, float]) -> None:
        if row["type"] == "start":
            self.run.config.update({k: v for k, v in row["args"].items() if v is not None}, allow_val_change=True)
        elif row["type"] == "task":
            self.run.log(values, step=step + 1)
        elif row["type"] == "end":
            self.run.summary.update(values)

    def close(self) -> None:
        self.run.finish()


KINDS: dict[str, Any] = {"csv": CsvSink, "tensorboard": TensorBoardSink, "wandb": WandbSink}


class Sinks:
    """The sinks of a run. `rows` is what the record holds already: a continued run writes it again."""

    def __init__(self, folder: Path, args: Namespace, rows: Iterable[dict]):
        self.open: dict[str, Any] = {}
        self.task = 0
        for name in chosen(args):
            self._safely(name, lambda name=name: self.open.update({name: KINDS[name](folder, args)}))
        for row in rows:
            self.row(row)

    def row(self, row: dict) -> None:
        """A line that is in the record now."""
        self.task = row.get("task", self.task)
        values = dict(scalars(row)) if row["type"] in {"task", "epoch", "end"} else {}
        for name, sink in list(self.open.items()):
            if values or row["type"] == "start":
                self._safely(name, lambda sink=sink: sink.write(row, self.task, values))

    def close(self) -> None:
        for name, sink in list(self.open.items()):
            self._safely(name, sink.close)
        self.open.clear()

    def _safely(self, name: str, action: Any) -> None:
        """Whatever a sink raises is a warning, once: it gets no further lines."""
        try:
            action()
        except Exception as error:
            self.open.pop(name, None)
            told = " ".join(str(error).split())[:200]
            warnings.warn(f"--{name} 1 stopped: {type(error).__name__}: {told}; the run and its record go on")
