"""The progress of long operations: a bar on a terminal, else a plain line now and then."""

import sys
import time
from argparse import Namespace

from tqdm import tqdm

from utils.settings import option

EVERY_S = 30.0  # between the plain lines


class PlainLines:
    """What the loop uses of a bar, as lines of a log file."""

    def __init__(self, title: str, total: int | None, done: int = 0):
        self.title, self.total, self.n, self.first = title, total, done, done
        self.begun = self.told = time.monotonic()
        self.text = ""

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        pass

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """What ends the next line."""
        self.text = text

    def update(self, n: int = 1) -> bool:
        """Count, and write a line if it is time; true, so that the loop keeps the text up to date."""
        self.n += n
        now = time.monotonic()
        if now - self.told >= EVERY_S:
            self.told, speed = now, max(self.n - self.first, 1) / (now - self.begun)
            rest = f" of {self.total}, {clock((self.total - self.n) / speed)} left" if self.total else ""
            print(f"{self.title}: {self.n} steps{rest}, {speed:.3g} steps/s {self.text}", file=sys.stderr, flush=True)
        return True


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def progress(title: str, total: int, args: Namespace, done: int = 0) -> tqdm | PlainLines:
    """The progress of a task on stderr."""
    quiet, known = option(args, "non_verbose", False), None if total >= sys.maxsize else total
    if not quiet and not sys.stderr.isatty():
        return PlainLines(title, known, done)
    return tqdm(
        total=known,
        initial=done,
        desc=title,
        disable=quiet,
        mininterval=0.2,
        dynamic_ncols=True,
        file=sys.stderr,
        leave=False,
    )
