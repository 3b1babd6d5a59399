"""The two ways a run can end early on purpose, and lack of memory; `main.py` turns them into exit codes."""


class UserError(Exception):
    """A mistake the user can mend: the message is the fact and the remedy in one line. Exit code 2, no traceback."""


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived and the state was saved. Exit code 130 or 143."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by signal {signum}")
        self.exit_code = 128 + signum


def memory_ran_out(error: BaseException) -> bool:
    """Whether the machine or its GPU could not give the memory asked for."""
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
