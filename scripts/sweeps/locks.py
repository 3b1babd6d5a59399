"""One lock for each configuration under its results: whoever holds it runs it, others wait. The run inherits it, so
that it stays locked when the launcher is killed and the run is not."""

import contextlib
import fcntl
import os
from pathlib import Path

from scripts.sweeps.plan import Job
from utils.errors import disk_errors


def path_of(job: Job) -> Path:
    return job.home / "locks" / job.config[:16]


def take(job: Job) -> int | None:
    """The open lock of a configuration, or None if another process holds it."""
    path = path_of(job)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise
    return fd


def release(fd: int) -> None:
    """Close it; a run that inherited it keeps it."""
    with contextlib.suppress(OSError):
        os.close(fd)
