"""Gradient projection with helpers out of another method's file, on a ring buffer, parameters as one vector."""

import torch

from models.gem import overwrite_grad, store_grad
from models.utils.continual_model import ContinualModel
from utils.args import *
from utils.ring_buffer import RingBuffer
from utils.status import progress_bar


class DropProjection(ContinualModel):
    NAME = 'drop_projection'
    COMPATIBILITY = ['class-il', 'domain-il', 'task-il']

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        add_rehearsal_args(parser)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.buffer = RingBuffer(self.args.buffer_size, self.n_tasks, self.device)
        self.grad_dims = [p.data.numel() for p in self.parameters()]
        self.grad_xy = torch.Tensor(sum(self.grad_dims)).to(self.device)
        self.grad_er = torch.Tensor(sum(self.grad_dims)).to(self.device)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.zero_grad()
        loss = self.loss(self.net.forward(inputs), labels)
        loss.backward()
        if self.current_task:
            store_grad(self.parameters, self.grad_xy, self.grad_dims)
            buf_inputs, buf_labels, _ = self.buffer.get_data(self.args.minibatch_size, transform=self.transform)
            self.net.zero_grad()
            self.loss(self.net.forward(buf_inputs), buf_labels).backward()
            store_grad(self.parameters, self.grad_er, self.grad_dims)
            dot = torch.dot(self.grad_xy, self.grad_er)
            if dot.item() < 0:
                self.grad_xy -= dot / torch.dot(self.grad_er, self.grad_er) * self.grad_er
            overwrite_grad(self.parameters, self.grad_xy, self.grad_dims)
        self.opt.step()
        return loss.item()

    def end_task(self, dataset):
        loader = dataset.train_loader
        cur_y, cur_x = next(iter(loader))[1:3]
        self.buffer.add_data(examples=cur_x.to(self.device), labels=cur_y.to(self.device),
                             task_labels=torch.ones(len(cur_y), dtype=torch.long) * self.current_task)
        progress_bar(0, 1, 1, self.current_task, 0.0)
