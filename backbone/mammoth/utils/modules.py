"""Parts of progressive networks."""

from backbone.mammoth.columns import AlphaModule, ListModule  # noqa: F401
