"""Names and small lookups that several layers share."""

from argparse import Namespace
from typing import Any

SPLIT_SETTINGS = ("class-il", "task-il")  # tasks have their own classes
SETTINGS = ("class-il", "task-il", "domain-il", "general-continual", "cssl", "biased-class-il")
UNMASKED = {"class-il", "domain-il", "general-continual", "cssl", "biased-class-il"}  # no task number at test time


def option(args: Namespace, name: str, default: Any = None) -> Any:
    """A flag's value, or the default if the Namespace does not have it (library use) or it is None."""
    value = getattr(args, name, None)
    return default if value is None else value
