"""X-TAIL: ten datasets, one per task, 16 images per class, all names competing at test time

The setting of Xu et al., NeurIPS 2024, arXiv 2406.18868 (RAIL): no hint of the dataset at test time, so the scores to
read are `xtail_transfer`, `xtail_avg` and `xtail_last`; those among a dataset's own names are reported beside them.

Choices: the domains of MTIL without CIFAR-100, whose names other domains repeat, in alphabetical order; the lists of
Zhou et al. (--split coop), which leave one class of Caltech101 out and make 1,100 names of ten domains; --shots 16.
"""

from argparse import Namespace
from typing import Literal

from datasets.utils.mtil_protocol import DOMAINS, files_of
from datasets.utils.mtil_protocol import ORDERS as MTIL_ORDERS
from datasets.utils.mtil_stream import CrossDomainStream


class Xtail(CrossDomainStream):
    NAME = "xtail"
    SETTING = "class-il"
    DEFAULTS = CrossDomainStream.DEFAULTS | {"shots": 16}
    ORDERS = {number: tuple(d for d in order if d != "cifar100") for number, order in MTIL_ORDERS.items()}
    FILES = files_of(ORDERS["I"], "coop")
    N_TASKS = len(ORDERS["I"])
    N_CLASSES_PER_TASK = [DOMAINS[d].coop_classes or DOMAINS[d].n_classes for d in ORDERS["I"]]

    def __init__(
        self,
        args: Namespace,
        mtil_order: Literal["I", "II"] = "I",
        task_order: str | None = None,
        split: Literal["zscl", "coop"] = "coop",
        shots: int = 16,
        shots_seed: int = 0,
    ):
        super().__init__(args, mtil_order, task_order, split, shots, shots_seed)
