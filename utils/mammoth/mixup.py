"""Mixup, under the name that method files import."""

from utils.mixing import mixup  # noqa: F401
