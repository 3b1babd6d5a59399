"""The memory of dissimilar gradients, under the name that method files import."""

from utils.memory.gss import Buffer  # noqa: F401
