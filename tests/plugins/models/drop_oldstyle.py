"""The old form: get_parser without an argument, observe with three parameters, a constructor without dataset."""

from argparse import ArgumentParser

import torch
import torch.nn.functional as F

from models.utils.continual_model import ContinualModel
from utils.args import add_experiment_args, add_management_args, add_rehearsal_args
from utils.buffer import Buffer


def get_parser() -> ArgumentParser:
    return ArgumentParser()


class DropOld(ContinualModel):
    NAME = 'drop-oldstyle'
    COMPATIBILITY = ['class-il', 'task-il']

    @staticmethod
    def get_parser() -> ArgumentParser:
        parser = ArgumentParser(description='logit replay')
        add_management_args(parser)
        add_experiment_args(parser)
        add_rehearsal_args(parser)
        parser.add_argument('--penalty', type=float, required=True)
        return parser

    def __init__(self, backbone, loss, args, transform):
        super(DropOld, self).__init__(backbone, loss, args, transform)
        self.buffer = Buffer(self.args.buffer_size, self.device)

    def observe(self, x, y, x_plain):
        self.opt.zero_grad()
        outputs = self.net(x)
        loss = self.loss(outputs, y)
        if not self.buffer.is_empty():
            old, logits = self.buffer.get_data(self.args.minibatch_size, transform=self.transform, device=self.device)
            loss += self.args.penalty * F.mse_loss(self.net(old), logits)
        loss.backward()
        self.opt.step()
        self.buffer.add_data(examples=x_plain, logits=outputs.data)
        return loss.item()
