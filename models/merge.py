"""Merged CLIPs, one fine-tuned on each task: mean, task arithmetic, TIES or MagMax of their weight differences.

Image tower fine-tuned on each task, text tower frozen. With theta_t after task t and tau_t = theta_t - theta_0,

    theta = theta_0 + merge_alpha * merged(tau_1, ..., tau_t)                                    -> `end_task`
    mean             their mean, alpha 1
    task-arithmetic  their sum, alpha 0.3    Ilharco et al., ICLR 2023, arXiv 2212.04089
    ties             trim to the largest ties_keep of each, elect signs, average what agrees, alpha 0.55
                     Yadav et al., NeurIPS 2023, arXiv 2306.01708
    magmax           at each place the value of largest magnitude, alpha 0.5
                     Marczak et al., ECCV 2024, arXiv 2407.06322

Choices: --merge_start previous goes on from theta_(t-1), as MagMax does; pretrained starts every task at theta_0. The
softmax is over the names seen so far (the released code has all names from the start). Mean, sum and magmax are kept
as one running vector, ties keeps all. alpha of the sum is a usual value, not a published one.

No table has a row of it; on the picture world:
    python main.py --model merge --rule magmax --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch.nn.utils import vector_to_parameters

from models.utils.clip_tuning import ClipTuning, add_tuning_args
from models.utils.merging import larger, ties
from utils.errors import UserError
from utils.flags import non_negative, share
from utils.gradients import flat

ALPHA = {"mean": 1.0, "task-arithmetic": 0.3, "ties": 0.55, "magmax": 0.5}


class Merge(ClipTuning):
    NAME = "merge"
    TOY_ARGS = {"lr": 0.001, "n_epochs": 1, "merge_alpha": 0.7}
    NOT_TRIED = {"ties_keep": "belongs to --rule ties; tests/test_merge.py"}

    @staticmethod
    def get_parser(parser):
        add = add_tuning_args(parser, label_smoothing=0.0).add_argument
        parser.set_defaults(optim_wd=0.1, label_space="seen")
        add("--rule", choices=list(ALPHA), default="magmax", help="how the tasks' weight differences are merged")
        add("--merge_alpha", type=non_negative, help="factor of the result (default: by rule 1, 0.3, 0.55, 0.5)")
        add("--ties_keep", type=share, help="ties: share of the largest values kept (default: 0.2)")
        starts = ["previous", "pretrained"]
        add("--merge_start", choices=starts, default="previous", help="weights from which a task is trained")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if args.ties_keep is not None and args.rule != "ties":
            raise UserError(f"--ties_keep changes nothing with --rule {args.rule}: leave it out, or --rule ties")
        self.keep = 0.2 if args.ties_keep is None else args.ties_keep
        self.alpha = ALPHA[args.rule] if args.merge_alpha is None else args.merge_alpha
        self.net.requires_grad_(False)
        self.net.clip.visual.requires_grad_(True)
        self.origin = flat(self.get_parameters())
        self.last = None  # theta_t
        self.taus = []  # one running vector, or with ties all of them
        self.names = None  # unit features of the names in the softmax (K, D)

    def get_parameters(self):
        return self.net.clip.visual.parameters()

    def begin_task(self, dataset):
        start = self.last if self.args.merge_start == "previous" and self.last is not None else self.origin
        self.load(start)
        with torch.no_grad():
            self.names = super().name_rows(self.net, *self.label_range())
        super().begin_task(dataset)

    def name_rows(self, net, first, last):
        return self.names

    @torch.no_grad()
    def load(self, weights):
        vector_to_parameters(weights, self.get_parameters())
        self.keys = None

    def end_task(self, dataset):
        super().end_task(dataset)
        now = flat(self.get_parameters())
        self.last = now if self.args.merge_start == "previous" else None
        self.taus = self.with_task(now - self.origin)
        merged = ties(self.taus, self.keep) if self.args.rule == "ties" else self.taus[0]
        self.load(self.origin + self.alpha * merged)

    def with_task(self, tau):
        if self.args.rule == "ties" or not self.taus:
            return [*self.taus, tau]
        (old,) = self.taus
        if self.args.rule == "magmax":
            return [larger(old, tau)]
        return [old + tau] if self.args.rule == "task-arithmetic" else [old.lerp(tau, 1 / (self.current_task + 1))]
