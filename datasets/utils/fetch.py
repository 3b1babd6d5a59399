"""The errors for files of a dataset that are absent or broken; nothing is ever downloaded automatically."""

from argparse import Namespace
from pathlib import Path

from utils.errors import UserError
from utils.settings import option


def base_path(args: Namespace) -> Path:
    return Path(option(args, "base_path", "./data/")).expanduser()


class AbsentFiles(UserError):
    """Files that a stream needs do not exist."""


class BrokenFiles(UserError):
    """Files exist but do not hold what they should."""


def absent(path: Path, dataset: str, source: str, size: str, base: Path) -> UserError:
    """The files do not exist: where they were expected and how to get them."""
    return AbsentFiles(
        f"{dataset}: {path} does not exist; fetch it ({size} from {source}) with "
        f"`python scripts/prepare_data.py {dataset} --base_path {base}`"
    )


def broken(path: Path, dataset: str, reason: object, base: Path) -> UserError:
    """A file exists but cannot be used."""
    return BrokenFiles(
        f"{dataset}: {path} is truncated or corrupt ({' '.join(str(reason).split())}); delete it and run "
        f"`python scripts/prepare_data.py {dataset} --base_path {base}`"
    )
