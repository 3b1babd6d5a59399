"""Replay with a held-out part: icarl_replay(val_set_split), whose val_loader is read after the task."""

import torch

from models.utils.continual_model import ContinualModel
from utils.args import ArgumentParser, add_rehearsal_args
from utils.buffer import Buffer, fill_buffer, icarl_replay


class DropBias(ContinualModel):
    NAME = "drop_bias"
    COMPATIBILITY = ["class-il", "task-il"]

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        add_rehearsal_args(parser)
        parser.add_argument("--valset_split", type=float, default=0.25)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.buffer = Buffer(self.args.buffer_size)
        self.held = []

    def begin_task(self, dataset):
        icarl_replay(self, dataset, val_set_split=self.args.valset_split)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        return loss.item()

    def end_task(self, dataset):
        found = torch.cat([data[1] for data in self.val_loader])
        self.held.append(len(found))
        assert set(found.tolist()) <= set(range(self.n_seen_classes)) and len(self.val_loader.dataset) == len(found)
        with torch.no_grad():
            fill_buffer(self.buffer, dataset, self.current_task, net=self.net, use_herding=True)
