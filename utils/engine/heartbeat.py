"""progress.json in a run's folder: how far it is within a task, every few seconds, for scripts/watch.py."""

import contextlib
import json
import os
import time
from pathlib import Path

EVERY_S = 5.0
NAME = "progress.json"


class Heartbeat:
    def __init__(self, folder: Path | None):
        self.path = folder / NAME if folder else None
        self.next = 0.0

    def due(self) -> bool:
        return self.path is not None and time.monotonic() >= self.next

    def beat(self, task: int, tasks: int, within: float, loss: float) -> None:
        """A task that counts from 0, their number, the fraction of its training that is done, and the last loss."""
        self.next = time.monotonic() + EVERY_S
        if self.path is None:
            return
        row = {"task": task, "tasks": tasks, "within": round(within, 4), "loss": loss if loss == loss else None}
        part = self.path.with_suffix(".part")
        with contextlib.suppress(OSError):  # it is only looked at
            part.write_text(json.dumps(row))
            os.replace(part, self.path)
