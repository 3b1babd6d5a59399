"""A quadratic penalty on get_params / get_grads, an optimiser of its own, a pass over the loader in end_task."""

import torch
from torch.optim import SGD

from models.utils.continual_model import ContinualModel
from utils.args import ArgumentParser


class DropQuadratic(ContinualModel):
    NAME = 'drop_quadratic'
    COMPATIBILITY = ['class-il', 'domain-il', 'task-il']

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        parser.add_argument('--e_lambda', type=float, required=True, help='weight')
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.checkpoint = None
        self.fish = None

    def penalty(self):
        if self.checkpoint is None:
            return torch.tensor(0.0).to(self.device)
        return (self.fish * ((self.net.get_params() - self.checkpoint) ** 2)).sum()

    def end_task(self, dataset):
        fish = torch.zeros_like(self.net.get_params())
        for j, data in enumerate(dataset.train_loader):
            inputs, labels = data[0].to(self.device), data[1].to(self.device).long()
            self.opt.zero_grad()
            self.loss(self.net(inputs), labels).backward()
            fish += self.net.get_grads() ** 2
        fish /= len(dataset.train_loader) * self.args.batch_size
        self.fish = fish if self.fish is None else self.fish + fish
        self.checkpoint = self.net.get_params().data.clone()
        for group in self.opt.param_groups:
            group['lr'] = self.args.lr
        self.opt.zero_grad()

    def get_optimizer(self, params=None, lr=None):
        return SGD(self.net.parameters(), lr=self.args.lr)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels) + self.args.e_lambda * self.penalty()
        assert not torch.isnan(loss)
        loss.backward()
        self.opt.step()
        return loss.item()
