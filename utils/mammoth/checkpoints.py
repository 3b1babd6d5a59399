"""What files import from here besides the functions of the training loop, which are in utils.engine.checkpoint."""

from utils import to_parsable_obj  # noqa: F401
