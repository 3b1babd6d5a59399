"""General continual learning: one stream without task boundaries, seen once."""

from argparse import Namespace

from datasets.utils.continual_dataset import ContinualDataset
from utils.errors import UserError
from utils.settings import option


class GCLDataset(ContinualDataset):
    """A stream that batches itself: `get_data_loaders` gives iterables of (augmented, label, not augmented)."""

    SETTING = "general-continual"
    N_TASKS = 1

    def __init__(self, args: Namespace):
        for flag in ("noise_rate", "eval_future", "enable_other_metrics", "joint"):
            if option(args, flag):
                raise UserError(f"--{flag} has no meaning on {self.NAME}: it is one stream without tasks")
        if option(args, "n_epochs", 1) > 1:
            raise UserError(f"{self.NAME} is a stream that is seen once: use --n_epochs 1")
        super().__init__(args)
