"""Processes that a test looks for and kills."""

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path


def family(pids: Iterable[int]) -> list[int]:
    """Processes with everything below them."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit():
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    todo, found = list(pids), []
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def commands(pids: Iterable[int]) -> dict[int, str]:
    """Command lines of those that are alive."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    return found


def kill(pids: Iterable[int]) -> None:
    """With SIGKILL, at once."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
