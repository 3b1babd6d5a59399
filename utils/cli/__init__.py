"""The command line: from argv to one Namespace, names, plug-ins. Standard library only."""

from utils.cli.parser import Parsed, fail, listing, new_parser, parse

__all__ = ["Parsed", "fail", "listing", "new_parser", "parse"]
