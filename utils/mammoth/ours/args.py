"""The names that method files import from `utils.args`; `from utils.args import *` brings all of them."""

import logging
import sys
from argparse import ArgumentParser, Namespace
from typing import List, Optional  # noqa: UP035  (the names are part of the interface)

from utils import binary_to_boolean_type, custom_str_underscore
from utils.flags import add_experiment_args, add_management_args, add_rehearsal_args, alias

__all__ = [
    "ArgumentParser",
    "Namespace",
    "List",
    "Optional",
    "add_rehearsal_args",
    "add_management_args",
    "add_experiment_args",
    "binary_to_boolean_type",
    "custom_str_underscore",
    "field_with_aliases",
    "logging",
    "sys",
    *(FETCHED := ["ContinualModel", "get_model_names"]),
]


def field_with_aliases(choices: dict[str, list[str]]):
    """Argument type: a choice by its name or by one of its other names."""
    return alias({spelling: name for name, others in choices.items() for spelling in [name, *others]})


def __getattr__(name: str):
    """Modules above utils are imported on request."""
    if name == "ContinualModel":
        from models.utils.continual_model import ContinualModel

        return ContinualModel
    if name == "get_model_names":
        from models import get_model_names

        return get_model_names
    raise AttributeError(f"module 'utils.args' has no attribute '{name}'")
