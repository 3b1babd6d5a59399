"""Command-line flags read off the signatures of datasets and backbones."""

import argparse
import inspect
import typing
from collections.abc import Callable
from pathlib import Path

from utils import flags
from utils.cli import registry
from utils.cli.flag_help import HELP

IGNORED = {"self", "args", "num_classes"}


def add_arguments(parser: argparse.ArgumentParser, obj: Callable, title: str) -> None:
    """Add one flag for every parameter of `obj` that the parser does not have yet."""
    known = {a.dest for a in parser._actions}
    group = None
    for name, parameter in inspect.signature(obj).parameters.items():
        if name in IGNORED or name in known or name.startswith("_"):
            continue
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            continue
        group = group or parser.add_argument_group(title)
        group.add_argument(f"--{name}", **({"help": HELP.get(name)} | argument_of(parameter)))


def argument_of(parameter: inspect.Parameter) -> dict:
    """The add_argument keywords of a parameter; Annotated[type, "help"] gives its help."""
    hint, default = parameter.annotation, parameter.default
    spec: dict = {"required": default is parameter.empty}
    if typing.get_origin(hint) is typing.Annotated:
        hint, spec["help"] = typing.get_args(hint)[:2]
    if not spec["required"]:
        spec["default"] = default
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        return spec | {"choices": list(choices), "type": type(choices[0])}
    candidates = [t for t in typing.get_args(hint) if t is not type(None)] or [hint]
    kind = candidates[0] if candidates[0] in {int, float, str, bool} else type(default)
    if candidates[0] is Path:
        return spec | {"type": flags.path}
    if kind is bool:
        return spec | {"type": flags.boolean}
    return spec | ({"type": kind} if kind in {int, float, str} else {})


def add_backbone_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Flags of the backbone that this run will build."""
    kind, _, _ = name.partition(":")
    add_arguments(parser, registry.load("backbone", kind), f"backbone {kind}")


def arguments_for(obj: Callable, args: argparse.Namespace) -> dict:
    """The values in `args` for the parameters of `obj`."""
    names = [n for n in inspect.signature(obj).parameters if n not in IGNORED]
    return {n: getattr(args, n) for n in names if hasattr(args, n)}
