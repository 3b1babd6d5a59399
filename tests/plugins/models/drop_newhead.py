"""A classifier put in place of the network's, own parameters for the optimiser, a schedule of its own."""

import torch
from torch import nn

from models.utils.continual_model import ContinualModel
from utils import binary_to_boolean_type
from utils.args import ArgumentParser
from utils.schedulers import CosineSchedule


class DropNewHead(ContinualModel):
    NAME = 'drop_newhead'
    COMPATIBILITY = ['class-il', 'task-il']

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        parser.set_defaults(optimizer='adam')
        parser.add_argument('--freeze', type=binary_to_boolean_type, default=False)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        backbone.classifier = nn.Linear(backbone.classifier.in_features, dataset.N_CLASSES, bias=False)
        super().__init__(backbone, loss, args, transform, dataset)

    def get_parameters(self):
        return self.net.classifier.parameters() if self.args.freeze else self.net.parameters()

    def begin_task(self, dataset):
        self.opt = self.get_optimizer(lr=self.args.lr / (1 + self.current_task))
        self.custom_scheduler = CosineSchedule(self.opt, K=self.args.n_epochs)
        self.scheduler = self.custom_scheduler

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        labels = labels.long()
        self.opt.zero_grad()
        logits = self.net(inputs)
        logits[:, :self.n_past_classes] = -float('inf')
        loss = self.loss(logits[:, :self.n_seen_classes], labels)
        loss.backward()
        self.opt.step()
        return {'loss': loss.item(), 'lr': self.opt.param_groups[0]['lr']}
