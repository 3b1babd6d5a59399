"""backbone.mnistmlp under another name."""

from backbone.mnistmlp import MNISTMLP, mnistmlp  # noqa: F401
