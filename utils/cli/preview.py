"""What a command line gets as its answer, help, table or error, found without importing torch.

A child process imports the chosen files with stand-ins in place of all third-party packages. Class bodies, flags and
defaults need only their names. Whatever needs more than a name (a value, a comparison, a loop) raises `Unknown`, and
the command is read again with the real packages, as is each command that starts a run. Standard library only.
"""

import argparse
import contextlib
import importlib.abc
import importlib.machinery
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import FunctionType, ModuleType
from typing import Any

from utils.errors import UserError

OURS = {"models", "datasets", "backbone", "utils", "main"}
REAL = {"yaml", "_yaml", "numpy"}  # light, and its content is needed
HEAVY = ("torch", "numpy")  # if one is imported already, there is nothing to save


class Unknown(BaseException):
    """The answer depends on what a package contains; not an Exception, which the files being read may catch."""


@dataclass(frozen=True)
class Answer:
    """What to print, and whether it is an error."""

    text: str
    notes: str  # for stderr, printed first
    wrong: bool

    def tell(self) -> str:
        """The text, or the error."""
        sys.stderr.write(self.notes)
        if self.wrong:
            raise UserError(self.text)
        return self.text


class StandIn:
    """Anything of a package that is not imported: it can be named, called, subclassed and used as a decorator."""

    def __getattr__(self, name: str) -> "StandIn":
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        decorates = len(args) == 1 and not kwargs and isinstance(args[0], (FunctionType, type))
        return args[0] if decorates else StandIn()

    def __getitem__(self, key: object) -> "StandIn":
        return StandIn()

    def __or__(self, other: object) -> "StandIn":
        return StandIn()

    __ror__ = __or__  # `None | Tensor` in an annotation

    def __iter__(self) -> Iterator["StandIn"]:
        return iter([StandIn()])  # `[*RESIZE.transforms, ToTensor()]`

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return (type("Base", (Base,), {}),)  # one of its own: the order of several bases stays possible

    def __eq__(self, other: object) -> bool:
        of_typing = "typing" in (getattr(other, "__module__", ""), type(other).__module__)  # of annotations
        return False if of_typing else self is other or self._unknown()

    def _unknown(self, *args: object) -> Any:
        raise Unknown

    __bool__ = __contains__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _unknown
    __str__ = __repr__ = __format__ = __int__ = __float__ = __index__ = __enter__ = __exit__ = _unknown
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __mod__ = _unknown
    __rmod__ = __floordiv__ = __pow__ = __rpow__ = __neg__ = __matmul__ = __and__ = __invert__ = _unknown
    __setattr__ = __setitem__ = __delattr__ = __instancecheck__ = __subclasscheck__ = _unknown

    def __hash__(self) -> int:
        return id(self)


class Base:
    """The base of a class whose bases are stand-ins; its parameters are not known."""

    def __init__(self, unknown_parameters: object = StandIn()) -> None:
        raise Unknown

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__()


class Module(ModuleType):
    """A module of stand-ins."""

    def __getattr__(self, name: str) -> StandIn:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn()


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a `Module` for everything that is neither ours nor Python's own; what is not installed stays missing."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        top = name.partition(".")[0]
        if top in OURS | REAL or top in sys.stdlib_module_names:
            return None
        if top == name and importlib.machinery.PathFinder.find_spec(name) is None:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Module:
        return Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def answer(read: Callable[[], object], parser: argparse.ArgumentParser) -> Answer | None:
    """What `read` returns or raises as a UserError; None if it must be called here, with the real packages."""
    if not hasattr(os, "fork") or any(name in sys.modules for name in HEAVY):
        return None
    sys.stdout.flush()
    sys.stderr.flush()
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _child(read, parser, source, sink)
        finally:
            os._exit(1)  # no clean-up of the parent's things
    os.close(sink)
    with open(source, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    return Answer(**json.loads(content)) if status == 0 and content else None


def _child(read: Callable[[], object], parser: argparse.ArgumentParser, source: int, sink: int) -> None:
    """Send the answer through the pipe and exit with 0, or exit with 1."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.close(source)
    found = rehearse(read, parser)
    if found is None:
        os._exit(1)
    with open(sink, "w", encoding="utf-8") as pipe:
        json.dump(asdict(found), pipe)
    os._exit(0)


def rehearse(read: Callable[[], object], parser: argparse.ArgumentParser) -> Answer | None:
    """Call `read` with stand-ins in this process, which is of no use afterwards; None if the answer is not certain."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
    notes = io.StringIO()
    with contextlib.redirect_stdout(notes), contextlib.redirect_stderr(notes):
        try:
            text = read()
            wrong = False
        except UserError as error:
            text, wrong = str(error), True
        except BaseException:  # also what is our fault: told with the real packages
            return None
    return Answer(text, notes.getvalue(), wrong) if isinstance(text, str) and plain(parser) else None


def plain(parser: argparse.ArgumentParser) -> bool:
    """Whether no stand-in got into the flags."""
    parts = [part for action in parser._actions for part in vars(action).values()] + list(parser._defaults.values())
    items = [item for part in parts for item in (part if isinstance(part, (list, tuple)) else [part])]
    return not any(type(item) is StandIn for item in items)
