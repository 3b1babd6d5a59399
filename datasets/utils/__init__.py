"""Helpers for dataset files."""

import inspect
from collections.abc import Callable

from utils.cli import plugins, registry
from utils.cli.configs import DEFAULT_ARGS

__path__ = plugins.search_path(__name__, __path__)


def set_default_from_args(flag: str) -> Callable:
    """Decorator for a method in a dataset's class body, after NAME: what it returns is the default of `--flag`.

    At run time the method returns the effective value, so `--flag` on the command line is respected.
    """
    name = registry.canonical(inspect.currentframe().f_back.f_locals["NAME"])

    def decorate(function: Callable) -> Callable:
        takes_self = bool(inspect.signature(function).parameters)
        default = function(None) if takes_self else function()
        DEFAULT_ARGS.setdefault(name, {})[flag] = default

        def effective(self=None):
            value = getattr(getattr(self, "args", None), flag, None)
            return default if value is None else value

        return effective

    return decorate
