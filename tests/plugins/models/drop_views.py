"""Two views of a batch from one augmentation, on replayed images; the memory of gss_buffer with its switches."""

import torch
import torch.nn.functional as F

from models.utils.continual_model import ContinualModel
from utils.args import ArgumentParser, add_rehearsal_args
from utils.augmentations import apply_transform, strong_aug
from utils.gss_buffer import Buffer


class DropViews(ContinualModel):
    NAME = "drop_views"
    COMPATIBILITY = ["class-il", "task-il", "domain-il"]

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        return add_rehearsal_args(parser) or parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.buffer = Buffer(self.args.buffer_size, self.device, self.args.minibatch_size, self)
        self.two = strong_aug(self.dataset.SIZE[0], (0.4, 0.4, 0.4), (0.25, 0.25, 0.25))

    def get_grads(self, inputs, labels):
        self.net.eval()
        self.opt.zero_grad()
        self.loss(self.net(inputs), labels).backward()
        grads = self.net.get_grads().clone().detach()
        self.opt.zero_grad()
        self.net.train()
        return grads.unsqueeze(0) if grads.dim() == 1 else grads

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.buffer.drop_cache()
        self.buffer.reset_fathom()
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        if not self.buffer.is_empty():
            views, buf_labels = self.buffer.get_data(self.args.minibatch_size, transform=self.two, device=self.device)
            a, b = views
            assert a.shape == b.shape and len(a) == len(buf_labels) and not torch.equal(a, b)
            c, d = apply_transform(not_aug_inputs, self.two)
            assert c.shape == d.shape == inputs.shape
            loss = loss + F.mse_loss(self.net(a), self.net(b))
        loss.backward()
        self.opt.step()
        self.buffer.add_data(examples=not_aug_inputs, labels=labels[: len(not_aug_inputs)])
        return loss.item()
