"""Helpers that import nothing but the standard library, under the names that method files expect."""

import os
import random
import string
import sys
from argparse import Namespace
from collections.abc import Mapping

_surface = os.path.join(os.path.dirname(__file__), "mammoth")  # see utils.cli.plugins
__path__ = [*__path__, os.path.join(_surface, "ours"), _surface]


def binary_to_boolean_type(value: str | int | bool) -> bool:
    """Argument type: true/1/t/y/yes or false/0/f/n/no, in any case."""
    text = str(value).strip().lower()
    if text in {"true", "1", "t", "y", "yes"}:
        return True
    if text in {"false", "0", "f", "n", "no"}:
        return False
    raise ValueError(f"'{value}' is neither true (1, t, y, yes) nor false (0, f, n, no)")


def none_or_float(value: str) -> float | None:
    """Argument type: a number, or the word None."""
    return None if str(value).lower() == "none" else float(value)


def custom_str_underscore(value: str) -> str:
    """Argument type: a name with dashes, also if typed with underscores."""
    return str(value).replace("_", "-")


def create_if_not_exists(path: str) -> None:
    """Make a folder and its parents."""
    os.makedirs(path, exist_ok=True)


def random_id(length: int = 8, alphabet: str = string.ascii_letters + string.digits) -> str:
    """A random identifier; independent of all seeded streams."""
    return "".join(random.SystemRandom().choice(alphabet) for _ in range(length))


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel."""
    return "ipykernel" in sys.modules


def smart_joint(*paths: str) -> str:
    """os.path.join in which later parts are never absolute: ("a", "/b") is a/b."""
    return os.path.join(paths[0], *(p.lstrip(os.sep) for p in paths[1:]))


def or_text(value, name: str):
    """A value that json supports unchanged, any other as text."""
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def to_parsable_obj(value, leaf=or_text, name: str = "value"):
    """Plain values of the same content, as json can hold them: arrays and tensors as lists, sets sorted.

    A value that contains no others becomes leaf(value, name), where name is the path to it.
    """
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(k): to_parsable_obj(v, leaf, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_parsable_obj(v, leaf, name) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((to_parsable_obj(v, leaf, name) for v in value), key=lambda v: (str(type(v)), v))
    return to_parsable_obj(value.tolist(), leaf, name) if hasattr(value, "tolist") else leaf(value, name)
