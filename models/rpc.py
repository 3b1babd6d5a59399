"""RPC: experience replay with a fixed classifier, the corners of a regular simplex.

Pernici et al., ICPR 2020, "Class-incremental learning with pre-allocated fixed classifiers". With z the first C - 1
outputs of the network and V (C - 1, C) the unit corners,

    logits = z V;   loss = CE(logits, y) on the batch together with replayed samples.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model rpc --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import math

import torch
from scipy.linalg import helmert

from models.utils.continual_model import ContinualModel
from utils.errors import UserError
from utils.flags import add_rehearsal_args
from utils.memory.buffer import Buffer


class Rpc(ContinualModel):
    NAME = "rpc"
    COMPATIBILITY = ["class-il", "task-il"]

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if self.num_classes < 2:
            raise UserError("rpc needs at least two classes: a simplex of one has no corners")
        self.buffer = Buffer(args.buffer_size)
        self.register_buffer("corners", simplex(self.num_classes).to(self.device), persistent=False)

    def forward(self, x):
        return self.net(x)[:, : self.num_classes - 1] @ self.corners

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        real = len(inputs)
        self.opt.zero_grad()
        if not self.buffer.is_empty():
            old, old_labels = self.buffer.get_data(self.args.minibatch_size, self.transform, device=self.device)
            inputs, labels = torch.cat((inputs, old)), torch.cat((labels, old_labels))
        loss = self.loss(self(inputs), labels)
        loss.backward()
        self.opt.step()
        self.buffer.add_data(examples=not_aug_inputs, labels=labels[:real])
        return loss.detach()


def simplex(corners: int) -> torch.Tensor:
    """(corners - 1, corners): unit columns, any two with inner product -1 / (corners - 1)."""
    return torch.from_numpy(helmert(corners)).float() * math.sqrt(corners / (corners - 1))
