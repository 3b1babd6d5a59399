"""Checkpoints written in the background: the snapshot in the training thread, the file in its own thread."""

import threading
import time
from pathlib import Path
from typing import Any

import torch

from utils.engine import checkpoint

SHARE = 0.02  # of a run's time that snapshots may take
PROBE = 2**22  # floats that are copied to measure the copy speed
AS_ASKED_S = 1.0  # shorter intervals than this are used as given: they are for tests of killed runs


def seconds_to_copy(n_bytes: float) -> float:
    """The expected time of a snapshot of this size; measured if it may matter."""
    if n_bytes < 16 * PROBE:
        return n_bytes / 1e9
    source, began = torch.zeros(PROBE), time.monotonic()
    source.clone()
    return 2 * (time.monotonic() - began) * n_bytes / (4 * PROBE)


class Saver:
    """Writes one file at a time. Errors in the thread are raised by the next call of `check`, `start` or `wait`."""

    def __init__(self, interval: float, expected_s: float = 0.0):
        self.interval = interval
        self.began = self.last = time.monotonic()  # when the newest snapshot was made
        self.cost_s, self.spent_s = expected_s, 0.0  # its time in the training thread, and that of all snapshots
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def due(self) -> bool:
        """Whether it is time for a snapshot: after the interval, or later if they would take more than SHARE."""
        self.check()
        if not self.interval or (self.thread is not None and self.thread.is_alive()):
            return False
        now, stretched = time.monotonic(), self.interval >= AS_ASKED_S
        affordable = self.spent_s + self.cost_s <= SHARE * (now - self.began)
        return now - self.last >= self.interval and (affordable or not stretched)

    def start(self, path: Path, state: Any, model: str) -> None:
        """Copy the tensors of `state` and write them while training goes on."""
        self.wait()
        began = time.monotonic()
        packed = checkpoint.pack(state, copy=True)
        self.thread = threading.Thread(target=self._write, args=(path, packed, model), name="autosave", daemon=True)
        self.thread.start()
        self.last = time.monotonic()
        self.cost_s = self.last - began
        self.spent_s += self.cost_s

    def _write(self, path: Path, packed: tuple, model: str) -> None:
        try:
            checkpoint.write(path, *packed, model=model)
        except BaseException as error:  # raised in the training thread
            self.error = error

    def check(self) -> None:
        """Raise any error of the thread."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def wait(self) -> None:
        """Wait until the file is completely on disk."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        self.check()
