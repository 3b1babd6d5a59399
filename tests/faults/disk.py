"""A disk that fails at the n-th write of a toy run, and what the run has left then.

Every call that changes a file below one folder is counted: opening for writing, writing, flushing to the disk,
renaming, making a folder. From the n-th on they fail as they do on a full disk, on one that became read-only, where
renaming fails, or after the folder of the run was removed.
"""

import builtins
import contextlib
import errno
import io
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import main
from tests import contract
from tests.conftest import in_child
from tests.faults import kills

KINDS = {
    "full": errno.ENOSPC,  # half of the first write still fits
    "read-only": errno.EROFS,
    "renaming": errno.EIO,
    "removed": 0,  # the folder with all runs is gone; further calls work as usual
}
SECONDS = 60  # that a toy run with a save after each step may take on a busy machine


class Disk:
    """Patches this process, which is a forked one."""

    def __init__(self, folder: Path, kind: str | None = None, at: int = 0):
        self.folder, self.kind, self.at, self.writes = f"{folder}{os.sep}", kind, at, 0

    @property
    def failing(self) -> bool:
        return self.kind is not None and self.writes >= self.at

    def below(self, target: object) -> bool:
        """Whether a path or an open file is below the folder."""
        with contextlib.suppress(OSError, TypeError, ValueError):
            if isinstance(target, int):
                return os.readlink(f"/proc/self/fd/{target}").startswith(self.folder)
            return os.path.abspath(os.fsdecode(target)).startswith(self.folder)
        return False

    def touch(self, target: object, what: str) -> bool:
        """Count a change of `target`; raise if the disk does not accept it. False for other places."""
        if not self.below(target):
            return False
        self.writes += 1
        if self.kind == "removed" and self.writes == self.at:
            shutil.rmtree(Path(self.folder) / "runs", ignore_errors=True)
        refused = {"full": {"write", "mkdir"}, "renaming": {"replace"}, "removed": set()}
        if self.failing and what in refused.get(self.kind, {what}):
            if self.kind == "full" and self.writes == self.at and what == "write":
                return True  # the caller writes half
            raise OSError(KINDS[self.kind], os.strerror(KINDS[self.kind]), str(target))
        return True

    def fail(self) -> None:
        """Patch everything that changes a file."""
        real = {name: getattr(os, name) for name in ("write", "open", "fsync", "replace", "mkdir", "truncate")}
        real_open, disk = builtins.open, self

        def write(fd, data):
            if disk.touch(fd, "write") and disk.kind == "full" and disk.writes == disk.at:
                return real["write"](fd, data[: len(data) // 2])
            return real["write"](fd, data)

        def os_open(path, flags, *more, **named):
            if flags & (os.O_WRONLY | os.O_RDWR):
                disk.touch(path, "open")
            return real["open"](path, flags, *more, **named)

        def calls(name, place=0):
            def call(*args, **named):
                disk.touch(args[place], name)
                return real[name](*args, **named)

            return call

        def opened(file, mode="r", *more, **named):
            if not set(mode) & set("wax+") or not disk.touch(file, "open"):
                return real_open(file, mode, *more, **named)
            return Watched(real_open(file, mode, *more, **named), disk)

        os.write, os.open, os.fsync, os.truncate = write, os_open, calls("fsync"), calls("truncate")
        os.replace, os.mkdir = calls("replace", 1), calls("mkdir")
        builtins.open = io.open = opened


class Watched:
    """An open file whose writes are counted."""

    def __init__(self, file, disk: Disk):
        self.file, self.disk = file, disk

    def write(self, data):
        if (
            self.disk.touch(self.file.fileno(), "write")
            and self.disk.kind == "full"
            and self.disk.writes == self.disk.at
        ):
            self.file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def truncate(self, size=None):
        self.disk.touch(self.file.fileno(), "truncate")
        return self.file.truncate(size)

    def __enter__(self):
        return self

    def __exit__(self, *why):
        self.file.close()

    def __iter__(self):
        return iter(self.file)

    def __getattr__(self, name):
        return getattr(self.file, name)


@dataclass
class Outcome:
    """What a run on a failing disk did: exit status, text on stderr, record lines of each run, seconds."""

    status: int
    told: str
    records: list[list[str]]
    seconds: float

    def wrong(self) -> str | None:
        """What a user must not see, in a few words."""
        code = -1 if os.WIFSIGNALED(self.status) else os.WEXITSTATUS(self.status)
        errors = sum(line.startswith("error: ") for line in self.told.splitlines())
        if code not in {0, 2} or "Traceback" in self.told or errors != (code == 2):
            return f"exit code {code} and {errors} error lines: {self.told[-600:]}"
        if self.seconds > SECONDS:
            return f"took {self.seconds:.0f} s"
        ends = [_kinds(lines)[-1] for lines in self.records if _kinds(lines)[0] == "start"]
        return "it ended well without a whole record" if code == 0 and "end" not in ends else None


def _kinds(lines: list[str]) -> list[str]:
    """Kinds of the lines of a record; a line that is not whole fails."""
    return [json.loads(line)["type"] for line in lines] or ["empty"]


def run(name: str, folder: Path, kind: str | None = None, at: int = 0) -> tuple[Outcome, int]:
    """One run in a forked process; also the number of its writes, if it came to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    notes, told = folder.parent / f"{folder.name}.writes", folder.parent / f"{folder.name}.told"
    argv = kills.command(name, folder, "--autosave", "0.0001")

    def child():
        kills.Trap("always").set()  # saves after each step
        disk = Disk(folder, kind, at)
        sys.stderr = open(told, "w", buffering=1)
        with contract.toys(), contextlib.redirect_stdout(io.StringIO()):
            disk.fail()
            code = main.main(argv)
        notes.write_text(str(disk.writes))
        os._exit(code)

    began = time.monotonic()
    status = in_child(child)
    seconds = time.monotonic() - began
    records = [whole_lines(path) for path in (folder / "runs").glob("*/*/*/record.jsonl")]
    outcome = Outcome(status, told.read_text(), records, seconds)
    return outcome, int(notes.read_text()) if notes.exists() else 0


def faults_of(name: str, kind: str, at: int, reference: Path, folder: Path) -> list[str]:
    """What is wrong with a run on a failing disk, and with the run that continues it on a whole one."""
    outcome, _ = run(name, folder, kind, at)
    wrong = outcome.wrong()
    kept = {path: whole_lines(path) for path in (folder / "runs").glob("*/*/*/record.jsonl")}
    code = kills.run(kills.command(name, folder, "--autosave", "600"))
    if wrong or code:
        return [wrong or f"the continued run has exit code {code}"]
    lost = [path for path, lines in kept.items() if lines[:1] != whole_lines(path)[:1]]
    found = kills.differences(reference, folder)
    if kind == "removed":  # its features remain, and are those of an earlier run
        found = [text for text in found if "image_forwards" not in text and text != "end  summary"]
    return found + [f"{path} lost its first line" for path in lost]


def whole_lines(path: Path) -> list[str]:
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()
