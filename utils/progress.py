"""The progress bar of long operations."""

import sys
from argparse import Namespace

from tqdm import tqdm

from utils.settings import option


def progress(title: str, total: int, args: Namespace, done: int = 0) -> tqdm:
    """A progress bar on stderr."""
    interval = 0.2 if sys.stderr.isatty() else 20.0
    return tqdm(
        total=None if total >= sys.maxsize else total,
        initial=done,
        desc=title,
        disable=option(args, "non_verbose", False),
        mininterval=interval,
        dynamic_ncols=True,
        file=sys.stderr,
        leave=False,
    )
