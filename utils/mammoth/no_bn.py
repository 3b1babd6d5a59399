"""The older name of utils.batch_norm."""

from utils.batch_norm import bn_track_stats  # noqa: F401
