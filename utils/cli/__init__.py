"""The command line: from argv to one Namespace, names, plug-ins. Standard library only."""

from utils.cli.listing import listing
from utils.cli.parser import Parsed, add_model_args, check_values, fail, new_parser, parse
from utils.cli.plugins import fail_in_plugin

__all__ = ["Parsed", "add_model_args", "check_values", "fail", "fail_in_plugin", "listing", "new_parser", "parse"]
