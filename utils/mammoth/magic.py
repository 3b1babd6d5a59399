"""A decorator that keeps the local variables of a function's last call."""

import functools
import sys
import types
from collections.abc import Callable


class persistent_locals:  # the name that files import
    """After a call `function.locals` is a dict of its variables as they were when it returned. Works on methods too."""

    def __init__(self, function: Callable):
        self._function, self._locals = function, {}
        functools.update_wrapper(self, function)

    def __call__(self, *args, **kwargs):
        def note(frame, event, _):
            if event == "return" and frame.f_code is self._function.__code__:
                self._locals = dict(frame.f_locals)

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            return self._function(*args, **kwargs)
        finally:
            sys.setprofile(before)

    def __get__(self, instance, owner=None):
        return self if instance is None else types.MethodType(self, instance)

    @property
    def locals(self) -> dict:
        return self._locals

    def clear_locals(self) -> None:
        self._locals = {}
