"""Words and small look-ups that several layers share."""

from argparse import Namespace
from typing import Any

SPLIT_SETTINGS = ("class-il", "task-il")  # tasks have classes of their own
SETTINGS = ("class-il", "task-il", "domain-il", "general-continual", "cssl", "biased-class-il")
UNMASKED = {"class-il", "domain-il", "general-continual", "cssl", "biased-class-il"}  # no task number at test time


def option(args: Namespace, name: str, default: Any = None) -> Any:
    """A flag's value, or the default where the Namespace has none (library use) or holds None."""
    value = getattr(args, name, None)
    return default if value is None else value
