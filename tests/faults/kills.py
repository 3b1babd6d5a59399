"""Kills a toy run of any registered method at a named moment, continues it, and compares it with the whole run.

The whole run counts how often each moment occurs. A trial draws one of these occurrences by the names of method and
moment, runs until then, gets SIGKILL there, and is continued by another process. The records of both must be equal,
and so must every tensor, counter and random state in their last checkpoints.
"""

import contextlib
import io
import json
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

import main
from models.utils.continual_model import ContinualModel
from tests import contract
from tests.conftest import comparable, in_child, newest_record
from utils.engine import checkpoint, evaluate, record, report
from utils.engine.autosave import Saver
from utils.engine.run import TASK_END

HOOKS = {
    "begin_task": "meta_begin_task",
    "step": "meta_observe",
    "end of an epoch": "meta_end_epoch",
    "end_task": "meta_end_task",
    "end_eval": "meta_end_eval",
}
CUTS = {  # moments within a write: what is on disk then
    "half a checkpoint": "half of its bytes under a temporary name",
    "before the rename": "a whole checkpoint under a temporary name",
    "after the rename": "the new checkpoint, but no record line that says so",
    "half a record line": "a line without its end",
    "after a record line": "a line of a task that the last checkpoint does not have",
    "half a segment": "features under a temporary name",
    "after a segment": "features that no record counts yet",
}
MOMENTS = [*HOOKS, "evaluation", "after end_task", *CUTS, "plot", "last line"]

EVERY_MOMENT = {"cgil", "mulki", "clumo", "exemplar-masking"}


@dataclass
class Trial:
    """One kill: what happened to it, and in what the continued run differs from the whole one."""

    moment: str
    count: int
    of: int
    killed: bool = False
    code: int = 0  # of the continued run
    differs: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return self.killed and self.code == 0 and not self.differs


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Trap:
    """Counts every moment of this process, and ends it in the `count`-th `moment`."""

    def __init__(self, moment: str | None = None, count: int = 0):
        self.moment, self.count, self.seen = moment, count, Counter()

    def here(self, moment: str) -> bool:
        self.seen[moment] += 1
        return moment == self.moment and self.seen[moment] == self.count

    def set(self) -> None:
        """Patch this process, which is a forked one."""
        for moment, hook in HOOKS.items():
            self.before(ContinualModel, hook, moment)
        self.after(ContinualModel, "meta_end_task", "after end_task")
        self.before(evaluate, "logits_of", "evaluation")
        self.before(report, "plot", "plot")
        self.before(record.RunRecord, "end", "last line")
        self.after(record.RunRecord, "task", "after a record line")
        self.cut_checkpoints()
        self.cut_files()
        record.plot_matrix = lambda *args: None  # a third of the time of a toy run
        if self.moment is not None:
            Saver.due = lambda saver: saver.wait() is None  # a file after every step, however slow the disk is

    def before(self, owner: object, name: str, moment: str) -> None:
        real = getattr(owner, name)
        setattr(owner, name, lambda *args, **kwargs: die() if self.here(moment) else real(*args, **kwargs))

    def after(self, owner: object, name: str, moment: str) -> None:
        real = getattr(owner, name)

        def call(*args, **kwargs):
            result = real(*args, **kwargs)
            return die() if self.here(moment) else result

        setattr(owner, name, call)

    def cut_checkpoints(self) -> None:
        real = checkpoint._write_safetensors

        def write(file, entries, metadata):
            if self.here("half a checkpoint"):
                whole = io.BytesIO()
                real(whole, entries, metadata)
                file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
                file.flush()
                die()
            real(file, entries, metadata)

        checkpoint._write_safetensors = write

    def cut_files(self) -> None:
        real_replace, real_write = os.replace, os.write
        around = {
            ".safetensors": ("before the rename", "after the rename"),
            ".rows": ("half a segment", "after a segment"),
        }

        def replace(source, target, **more):
            before, after = around.get(Path(target).suffix, (None, None))
            if before and self.here(before):
                if before == "half a segment":
                    os.truncate(source, os.path.getsize(source) // 2)
                die()
            real_replace(source, target, **more)
            if after and self.here(after):
                die()

        def write(fd, data):
            if os.readlink(f"/proc/self/fd/{fd}").endswith("record.jsonl") and self.here("half a record line"):
                real_write(fd, data[: len(data) // 2])
                die()
            return real_write(fd, data)

        os.replace, os.write = replace, write


def stream_of(name: str) -> str:
    """The toy stream of a method: with texts for one that reads them."""
    if getattr(contract.model_class(name), "FUSES_TEXT", False):
        return "toy-pairs"
    return contract.STREAMS[contract.settings_of(name)[0]].NAME


def command(name: str, folder: Path, *more: str) -> list[str]:
    """A toy run with its record, checkpoints and features below `folder`."""
    argv = contract.argv_of(name, stream_of(name))
    argv[argv.index("--disable_log") + 1] = "0"
    if "--base_path" in argv:
        argv[argv.index("--base_path") + 1] = str(folder / "base")
    argv += ["--results_path", str(folder / "runs"), "--resume", "auto", "--savecheck", "last"]  # to compare states
    return [*argv, *more]


def run(argv: list[str], trap: Trap | None = None, notes: Path | None = None) -> int:
    """In a forked process: its wait status."""

    def child():
        (trap or Trap()).set()
        with contract.toys(), contextlib.redirect_stdout(io.StringIO()):
            code = main.main(argv)
        if notes is not None:
            notes.write_text(json.dumps(trap.seen))
        os._exit(code)

    return in_child(child)


def whole(name: str, folder: Path) -> dict[str, int]:
    """Run without a kill; how often each moment occurs."""
    folder.mkdir(parents=True, exist_ok=True)
    notes = folder / "moments.json"
    status = run(command(name, folder, "--autosave", "600"), Trap(), notes)
    assert status == 0, f"{name} does not run at all: exit status {status}"
    seen = json.loads(notes.read_text())
    n_saves = seen.get("step", 0) + seen["end_task"]  # a killed run saves after each step
    return seen | dict.fromkeys(("half a checkpoint", "before the rename", "after the rename"), n_saves)


def trial(name: str, moment: str, occurs: int, reference: Path, folder: Path) -> Trial:
    """Kill at one occurrence of the moment, continue, compare."""
    count = random.Random(f"{name} {moment}").randint(1, occurs)
    result = Trial(moment, count, occurs)
    result.killed = os.WIFSIGNALED(run(command(name, folder, "--autosave", "0.0001"), Trap(moment, count)))
    result.code = run(command(name, folder, "--autosave", "600"))
    result.differs = differences(reference, folder)
    return result


def differences(whole: Path, killed: Path) -> list[str]:
    """In what two finished runs differ: lines of their records, entries of their last checkpoints."""
    found = []
    begun = [path for path in (killed / "runs").glob("*/*/*/record.jsonl") if b"\n" in path.read_bytes()]
    if len(begun) != 1:  # a run without a whole first line never began
        found.append(f"{len(begun)} runs")
    pairs = [
        [comparable(r) for r in newest_record(p / "runs") if r["type"] in {"task", "end"}] for p in (whole, killed)
    ]
    if len(pairs[0]) != len(pairs[1]):
        return [*found, f"{len(pairs[1])} record lines instead of {len(pairs[0])}"]
    for a, b in zip(*pairs, strict=True):
        found += [f"{a['type']} {a.get('task', '')} {key}" for key in a | b if a.get(key) != b.get(key)]
    (text, tensors), (other, others) = (_packed(p) for p in (whole, killed))
    if text != other:
        found.append("the structure of the last checkpoint")
    return found + [f"tensor {k}" for k in tensors | others if k not in tensors or not _bits(tensors, others, k)]


def _packed(folder: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """Model and random states of the last checkpoint of a run."""
    path = max((folder / "runs").glob(f"*/*/*/ckpt/{TASK_END}"), key=lambda p: p.parents[1].name)
    state = checkpoint.load(path, model=None)
    text, tensors, _ = checkpoint.pack({key: state[key] for key in ("model", "rng", "position")})
    return text, tensors


def _bits(tensors: dict, others: dict, name: str) -> bool:
    a, b = tensors[name], others.get(name)
    same = b is not None and a.shape == b.shape and a.dtype == b.dtype
    return same and torch.equal(*(t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def warm_up(folder: Path) -> None:
    """Import what a run imports late, once instead of in each forked process."""
    with contract.toys(), contextlib.redirect_stdout(io.StringIO()):
        main.main(command("sgd", folder))


def moments_for(name: str, occurs: dict[str, int]) -> list[str]:
    """The moments to try: all that occur, or three of them, drawn by the name of the method."""
    there = [m for m in MOMENTS if occurs.get(m)]
    return there if name in EVERY_MOMENT else random.Random(name).sample(there, 3)
