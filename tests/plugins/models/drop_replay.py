"""Replay with a star import, a kornia-style transform and labels before noise."""

import torch

from models.utils.continual_model import ContinualModel
from utils.args import *
from utils.buffer import Buffer
from utils.kornia_utils import to_kornia_transform


class DropReplay(ContinualModel):
    NAME = 'drop_replay'
    COMPATIBILITY = ['class-il', 'domain-il', 'task-il', 'general-continual']

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        add_rehearsal_args(parser)
        parser.add_argument('--use_true', type=binary_to_boolean_type, default=0)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.buffer = Buffer(self.args.buffer_size, device=self.device)
        self.weak = to_kornia_transform(self.original_transform.transforms[-1].transforms)
        logging.debug('made')

    def observe(self, inputs, labels, not_aug_inputs, true_labels, epoch=None):
        real_batch_size = inputs.shape[0]
        self.opt.zero_grad()
        if not self.buffer.is_empty():
            buf_inputs, buf_labels, buf_true = self.buffer.get_data(
                self.args.minibatch_size, transform=self.weak, device=self.device)
            inputs = torch.cat((inputs, buf_inputs))
            labels = torch.cat((labels, buf_true if self.args.use_true else buf_labels))
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        self.autolog_wandb(locals())
        self.buffer.add_data(examples=not_aug_inputs, labels=labels[:real_batch_size], true_labels=true_labels)
        return loss.item()
