"""What files import from here besides the loop's own functions, which are in utils.engine.checkpoint."""

from utils import to_parsable_obj  # noqa: F401
