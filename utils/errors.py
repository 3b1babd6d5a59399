"""The two ways a run can end early on purpose; `main.py` turns them into exit codes."""


class UserError(Exception):
    """A mistake the user can mend: the message is the fact and the remedy in one line. Exit code 2, no traceback."""


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived and the state was saved. Exit code 130 or 143."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by signal {signum}")
        self.exit_code = 128 + signum
