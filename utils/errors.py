"""The deliberate ways to end a run early, and lack of memory; `main.py` turns them into exit codes."""

import contextlib
import errno
import os
import re

LONG_WORD = re.compile(r"[^\s/]{256,}")  # longer than any part of a path
LONG_LINE = re.compile(r"[^\n]{2000,}")
CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029]"
)  # would move a terminal's cursor, or be read as a new line


def shown(value, limit: int = 80) -> str:
    """A value as shown in messages: the middle of a long one is omitted."""
    text = str(value).replace("\n", "\\n")
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}...({len(text):,} characters)...{text[-limit // 4 :]}"


class UserError(Exception):
    """An error the user can fix: the message gives the fact and the remedy in one line. Exit code 2, no traceback."""

    def __init__(self, message: object = ""):
        text = LONG_WORD.sub(lambda word: shown(word[0]), CONTROL.sub("?", str(message)))
        super().__init__(LONG_LINE.sub(lambda line: shown(line[0], 1000), text))


class RanksLost(Exception):
    """Another rank of the run has ended, or does not answer: exit code 1, the run can be resumed."""


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived and the state was saved. Exit code 130 or 143."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by signal {signum}")
        self.exit_code = 128 + signum


def memory_ran_out(error: BaseException) -> bool:
    """Whether the machine or its GPU could not provide the requested memory."""
    refused = (
        "can't allocate memory",
        "not enough memory",
        "invalid buffer size",
        "Storage size calculation overflowed",
    )
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in refused))
    )


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike, remedy: str = "choose another --results_path"):
    """Turn disk errors into one line with the path and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise UserError(f"no space left for {path}; free some space or {remedy}") from error
        raise UserError(f"cannot write {path}: {error.strerror}; {remedy}") from error
