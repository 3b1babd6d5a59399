"""Importable under every name, so that a dataset file whose data is in place runs; calling one is refused."""

from collections.abc import Callable

from utils.errors import UserError


def __getattr__(name: str) -> Callable:
    if name.startswith("__"):
        raise AttributeError(f"module 'datasets.utils.hf_download' has no attribute '{name}'")

    def refused(*args, **kwargs):
        what = "".join(f" {a}" for a in (*args, *kwargs.values()) if isinstance(a, str))
        raise UserError(
            f"{name}{what}: nothing is downloaded automatically; put the files where the dataset file looks for them"
        )

    return refused
