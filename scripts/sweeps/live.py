"""What a sweep says while it runs: a line for each run that ends and, on a terminal, one live line below them."""

import shutil
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from scripts.sweeps.pool import Pool

CLEAR = "\r\x1b[K"


def duration(seconds: float | None) -> str:
    """45 s, 12 min, 3.5 h; a dash where it is not known."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{max(0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def counts(pool: "Pool") -> str:
    parts = {
        "done": len(pool.tally.done),
        "running": len(pool.running),
        "failed": len(pool.tally.failed),
        "waiting": len(pool.waiting),
    }
    return ", ".join(f"{n} {what}" for what, n in parts.items()) + f"; time left {duration(pool.seconds_left())}"


class Screen:
    def __init__(self, out: TextIO):
        self.out, self.live = out, out.isatty()
        self.shown, self.when = "", 0.0

    def told(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        print(text, file=self.out, flush=True)

    def draw(self, pool: "Pool") -> None:
        text = counts(pool)[: shutil.get_terminal_size().columns - 1]
        if self.live and (text != self.shown or time.monotonic() > self.when + 10):
            self.out.write(CLEAR + text)
            self.out.flush()
            self.shown, self.when = text, time.monotonic()

    def clear(self) -> None:
        if self.shown:
            self.out.write(CLEAR)
            self.shown = ""
