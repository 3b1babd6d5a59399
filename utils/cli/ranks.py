"""What torchrun says about this process, and how an error is told once by several of them. Starts without torch."""

import os
import sys
import time
from argparse import Namespace
from pathlib import Path

from utils.errors import RanksLost, UserError

PATIENCE_S = 5.0  # a later rank waits for rank 0 to tell the same error; torchrun then ends it
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
_first: list[int] = []  # process number of rank 0, if it is on this machine


def first_is(pid: int) -> None:
    """Remember the process of rank 0."""
    _first[:] = [pid]


def number() -> int:
    """The rank of this process; 0 where torchrun did not start it."""
    return int(os.environ.get("RANK", 0)) if processes() > 1 else 0


def processes() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in VARIABLES) else 1


def check(args: Namespace) -> None:
    """Refuse copies of one run, and ranks that nobody started."""
    asked, count = getattr(args, "distributed", "no") == "ddp", processes()
    if count > 1 and not asked:
        raise UserError(
            f"torchrun started {count} processes, which would be {count} copies of this run: "
            "add --distributed ddp, or start it with python"
        )
    if asked and not all(name in os.environ for name in VARIABLES):
        raise UserError(
            "--distributed ddp needs torchrun: torchrun --nproc_per_node 2 main.py ... "
            f"({', '.join(name for name in VARIABLES if name not in os.environ)} not set)"
        )
    if asked and (getattr(args, "code_optimization", None) or 0) >= 3:
        raise UserError("--distributed ddp: torch.compile does not see the rows of other ranks; use -O 2 at most")


def first_is_gone() -> bool:
    """Whether rank 0, on this machine, has been killed: then rank 1 speaks for all."""
    try:
        state = Path(f"/proc/{_first[0]}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # gone, or not on this machine
        return bool(_first)
    return state == "Z"


def told(error: UserError | RanksLost) -> str:
    """The text of an error. A rank after the first waits before it tells one, since rank 0 usually tells the same."""
    if number() and not (number() == 1 and first_is_gone()):
        time.sleep(PATIENCE_S)
    return f"rank {number()}: {error}" if number() else str(error)


def lost(error: RanksLost) -> int:
    """Print that a rank is gone, and return the exit code."""
    print(f"error: {told(error)}; --resume auto continues from the last checkpoint", file=sys.stderr)
    return 1
