"""MER: replayed and new samples one by one, with Reptile interpolation within a batch and across batches.

Riemer et al., ICLR 2019, arXiv 1810.11910 (the first algorithm). For each stream batch and each of `batch_num` memory
batches,

    theta_w <- single-sample SGD steps over the memory batch, then the stream batch
    theta   <- theta_before + beta (theta_w - theta_before)        within the batch
and after all of them
    theta   <- theta_0 + gamma (theta - theta_0)                   across batches

With beta = gamma = 1 this is experience replay in steps of one sample. The published setting has --batch_size 1.

Row of docs/classics.md, by scripts/classics.sh, one seed:
    python main.py --model mer --dataset seq-tiny --backbone clip-visual --model_config best --device cpu \
        --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch

from models.utils.continual_model import ContinualModel
from utils.flags import add_rehearsal_args, positive_int, real
from utils.memory.buffer import Buffer
from utils.weights import interpolate, weights_of


class Mer(ContinualModel):
    NAME = "mer"
    ONE_RANK = "takes one sample in each step, so there is nothing to share"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]
    TOY_ARGS = {"batch_size": 4}

    @staticmethod
    def get_parser(parser):
        parser.set_defaults(batch_size=1)
        add_rehearsal_args(parser)
        parser.add_argument("--beta", type=real, required=True, help="Reptile step size within a batch")
        parser.add_argument("--gamma", type=real, required=True, help="Reptile step size across batches")
        parser.add_argument("--batch_num", type=positive_int, default=1, help="memory batches for each stream batch")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = Buffer(args.buffer_size)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        start, losses = weights_of(self.net, trained_only=False), []
        for _ in range(self.args.batch_num):
            before, (x, y) = weights_of(self.net, trained_only=False), self.with_memory(inputs, labels)
            losses += [self.step(x[i : i + 1], y[i : i + 1]) for i in range(len(y))]
            interpolate(self.net, before, self.args.beta)
        interpolate(self.net, start, self.args.gamma)
        self.buffer.add_data(examples=not_aug_inputs, labels=labels)
        return torch.stack(losses).mean()

    def with_memory(self, inputs, labels):
        if self.buffer.is_empty():
            return inputs, labels
        old, old_labels = self.buffer.get_data(self.args.minibatch_size, self.transform, device=self.device)
        return torch.cat((old, inputs)), torch.cat((old_labels, labels))

    def step(self, x, y):
        self.opt.zero_grad()
        loss = self.loss(self.net(x), y)
        loss.backward()
        self.opt.step()
        return loss.detach()
