"""A progress bar in the form that method files call; the loop has its own (`utils.engine.training.progress`)."""

import sys
import time

WIDTH = 40  # characters


class ProgressBar:
    """`prog(i, max_iter, epoch, task, loss)` after each step, and `reset()` before the first."""

    def __init__(self, joint: bool = False, verbose: bool = True, update_every: int = 1):
        self.joint, self.verbose, self.update_every = joint, verbose, update_every
        self.reset()

    def reset(self) -> None:
        self.started = time.monotonic()

    def prog(self, i: int, max_iter: int | None, epoch: int | str, task_number: int | str, loss: float) -> None:
        if i == 0:
            self.reset()
        if not self.verbose or (i % self.update_every and i + 1 != max_iter):
            return
        rate = (i + 1) / max(time.monotonic() - self.started, 1e-9)
        filled = WIDTH * (i + 1) // max_iter if max_iter else 0
        share = f"|{'#' * filled:<{WIDTH}}| {i + 1}/{max_iter}" if max_iter else f"{i + 1}"
        number = (
            task_number if isinstance(task_number, str) else int(task_number) + 1
        )  # a name: files use such numbers for other phases
        place = "joint" if self.joint else f"task {number}"
        end = "\n" if max_iter and i + 1 >= max_iter else ""
        print(
            f"\r{place} epoch {epoch} {share} {rate:.1f}/s loss {float(loss):.4g}", end=end, file=sys.stderr, flush=True
        )


def progress_bar(i: int, max_iter: int | None, epoch: int | str, task_number: int | str, loss: float) -> None:
    """One line on stderr, overwritten at each step."""
    _bar.prog(i, max_iter, epoch, task_number, loss)


_bar = ProgressBar()
