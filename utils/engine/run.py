"""One run on disk: its record, its checkpoints, the clock that saves them, and the signals that stop it."""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils import ranks
from utils.cli import shell
from utils.cli.shell import STOPS
from utils.conf import warn_once
from utils.engine import checkpoint
from utils.engine import record as results
from utils.engine.accounting import Stopwatch
from utils.engine.autosave import Saver, seconds_to_copy
from utils.engine.heartbeat import Heartbeat
from utils.engine.module_state import SKIP
from utils.errors import Interrupted, UserError
from utils.features import FeatureStore

if TYPE_CHECKING:
    from models.utils.continual_model import ContinualModel

STATE_PER_WEIGHTS = 5  # of a model with Adam states and teachers
MID_TASK, TASK_END = "auto.safetensors", "task.safetensors"


class Run:
    """The progress of a run and how to save it. `position` says where a resumed run continues."""

    def __init__(
        self,
        model: ContinualModel,
        args: Namespace,
        record: results.RunRecord | None,
        rows: dict,
        resumed: Path | None = None,
    ) -> None:
        self.model, self.args, self.record = model, args, record
        self.resumed = resumed  # folder of the run that this one continues
        self.rows = rows  # score matrices so far
        self.forwards_before: dict[str, int] = {}  # of earlier processes of this run
        self.reused = 0  # images whose features came from earlier runs, as far as the record says
        self.watch = Stopwatch()
        self.started, self.seconds_before = time.perf_counter(), 0.0
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        self.saver = Saver(args.autosave if record else 0.0, seconds_to_copy(STATE_PER_WEIGHTS * weights))
        self.heartbeat = Heartbeat(self.folder)
        self.signal: int | None = None
        self.polled = False  # inside the batch loop, which checks `signal` itself
        self.position: dict[str, Any] = {"task": 0, "phase": "begin", "epoch": 0, "batch": 0}
        self.loop_state: dict = {}  # state of the loop itself: schedule, early stopping
        self.stores = {name: v for name, v in vars(model).items() if isinstance(v, FeatureStore)}
        if self.folder and args.autosave:
            for store in self.stores.values():
                store.keep_ledger(self.folder / "ckpt" / "features")

    @property
    def wall_s(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def forwards(self) -> dict[str, int]:
        """Images, and questions if any, that were encoded so far by all processes of this run."""
        return {
            name: getattr(self.model, name) + self.forwards_before.get(name, 0)
            for name in ("image_forwards", "question_forwards")
            if hasattr(self.model, name)
        }

    @property
    def folder(self) -> Path | None:
        return self.record.folder if self.record else None

    # saving

    def state(self, position: dict) -> dict:
        captured, lost = checkpoint.capture(self.model, self.skipped())
        for name in lost:
            warn_once(
                f"a checkpoint cannot hold {self.model.NAME}.{name}; a resumed run starts with its value "
                "from the constructor"
            )
        return {
            "position": position,
            "model": captured,
            "rng": checkpoint.rng_state(),
            "rows": self.rows,
            "loop": self.loop_state,
            "wall_s": self.wall_s,
            "forwards": self.forwards(),
            "asked": {name: store.asked() for name, store in self.stores.items()},
            "args": {k: v for k, v in vars(self.args).items() if isinstance(v, (int, float, str, bool, type(None)))},
            "class_order": None
            if getattr(self.args, "class_order", None) is None
            else list(map(int, self.args.class_order)),
            "record_bytes": self.record.size if self.record else 0,
        }

    def skipped(self) -> frozenset[str]:
        """What a checkpoint omits: the run itself, and what the method's constructor rebuilds."""
        return SKIP | {"run"} | self.model.checkpoint_skip()

    def save(self, name: str, position: dict) -> None:
        if self.record is None or self.folder is None or not self.args.autosave:
            return
        if not self.record.path.exists():  # saving would make the folder again, without a record
            raise UserError(f"{self.record.path} was removed while the run was writing to it: start the run again")
        with self.watch.phase("save"):
            self.saver.start(self.folder / "ckpt" / name, self.state(position), self.model.NAME)

    def tick(self, before_save: Callable[[], None] | None = None, **position: Any) -> None:
        """A safe point: save if it is time, stop if requested."""
        self.position = self.position | position
        stop = self.stop_asked()
        if self.saver.due() or (stop and self.args.save_after_interrupt):
            if before_save:
                before_save()
            self.save(MID_TASK, self.position)
        self.stop_if_asked()

    def stop_asked(self) -> bool:
        """Whether a signal has reached any rank."""
        self.signal = ranks.agree(self.signal or 0) or None
        return self.signal is not None

    def stop_if_asked(self) -> None:
        if self.signal:
            self.saver.wait()
            raise Interrupted(self.signal)

    def leave(self) -> None:
        """Wait for the file that is being written; its error is a warning, since the run ends for another reason."""
        try:
            self.saver.wait()
        except (UserError, OSError) as error:
            warnings.warn(f"the last checkpoint was not written: {error}", stacklevel=2)

    def keep(self, task: int, last: bool) -> None:
        """The checkpoints that --savecheck asks for."""
        mode = self.args.savecheck
        if ranks.rank() or mode is None or (mode == "last" and not last):
            return
        folder = (
            Path(self.args.checkpoint_path)
            if self.args.checkpoint_path
            else (self.folder or Path("checkpoints")) / "ckpt"
        )
        prefix = f"{self.args.ckpt_name}_" if self.args.ckpt_name else ""
        stamp = self.folder.name if self.folder else str(os.getpid())
        end = "joint" if getattr(self.args, "joint", False) else "last" if mode == "last" else str(task)
        self.saver.wait()
        path = folder / f"{prefix}{self.args.model}_{self.args.dataset}_{stamp}_{end}.safetensors"
        checkpoint.save(
            path, self.state({"task": task, "phase": "done", "epoch": 0, "batch": 0}), model=self.model.NAME
        )

    def drop_checkpoints(self) -> None:
        """A finished run needs none of its saves; --savecheck keeps them all."""
        folder = self.folder / "ckpt" if self.folder else None
        if folder is not None and folder.is_dir() and not self.args.savecheck:
            shutil.rmtree(folder, ignore_errors=True)

    # going on

    def restore(self, state: dict) -> None:
        """Restore model, counters and random states from a saved state."""
        checkpoint.restore(self.model, state["model"], self.skipped())
        self.model.to(self.model.device)
        self.model.prepare_net()
        self.rows.clear()
        self.rows.update(state["rows"])
        self.loop_state = state["loop"]
        self.position = state["position"]
        self.seconds_before = max(self.seconds_before, state["wall_s"])
        for name, store in self.stores.items():
            store.load_asked(state.get("asked", {}).get(name, {}))
        self.forwards_before = {n: count - getattr(self.model, n) for n, count in state.get("forwards", {}).items()}
        checkpoint.set_rng_state(state["rng"])

    def saved(self, name: str) -> dict | None:
        folder = self.folder or self.resumed
        path = folder / "ckpt" / name if folder else None
        if path is None or not path.exists():
            return None
        return checkpoint.load_run(path, model=self.model.NAME, device=self.model.device)

    # signals

    @contextmanager
    def signals(self) -> Iterator[Run]:
        """SIGINT, SIGTERM and SIGHUP end the run at the next safe point; a second one ends the process at once.
        One that is ignored, as SIGHUP is under nohup, stays so."""

        def handle(number: int, frame: object) -> None:
            if self.signal is not None:
                os._exit(128 + number)
            self.signal = number
            if not self.polled:
                raise Interrupted(number)

        try:
            old = {s: signal.signal(s, handle) for s in STOPS if signal.getsignal(s) != signal.SIG_IGN}
        except ValueError:  # not in the main thread: then the host program handles signals
            old = {}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    @contextmanager
    def polling(self) -> Iterator[None]:
        """A section whose safe points call `tick`, so that a signal waits for the next one."""
        before, self.polled = self.polled, True
        shell.waits = True
        try:
            yield
        finally:
            self.polled = shell.waits = before


class LossGuard:
    """Finds a non-finite loss and names its batch, without a device sync in every step."""

    def __init__(self, device: torch.device):
        self.every = 1 if device.type == "cpu" else 20
        self.pending: list[tuple[tuple, Any]] = []
        self.last = float("nan")
        self.sum, self.count = 0.0, 0  # of this epoch

    def push(self, loss: Any, place: tuple) -> None:
        self.pending.append((place, loss.detach() if isinstance(loss, torch.Tensor) else loss))
        if len(self.pending) >= self.every:
            self.flush()

    def flush(self) -> None:
        if not self.pending:
            return
        if any(loss is None for _, loss in self.pending):
            raise UserError("observe did not return a loss: return it as a number, or as a dict with 'loss'")
        values = [float(v.mean()) if isinstance(v, torch.Tensor) else float(v) for _, v in self.pending]
        places, self.pending = [p for p, _ in self.pending], []
        for (task, epoch, batch), value in zip(places, values, strict=True):
            if not math.isfinite(value):
                raise UserError(
                    f"the loss is {value} in task {task + 1}, epoch {epoch + 1}, batch {batch + 1}: "
                    "lower --lr or check the data; the last good checkpoint is kept"
                )
        self.last = values[-1]
        for value in values:
            self.sum, self.count = self.sum + value, self.count + 1
