"""A network for each task, chosen by the task's number at test time."""

import torch

from backbone import get_backbone
from models.utils.continual_model import ContinualModel


class DropColumns(ContinualModel):
    NAME = "drop_columns"
    COMPATIBILITY = ["task-il"]

    def __init__(self, backbone, loss, args, transform, dataset=None):
        self.nets = [backbone]
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.soft = torch.nn.Softmax(dim=0)

    def forward(self, x, task_label):
        net = self.nets[int(task_label[0])].eval()
        return net(x.to(self.device))

    def end_task(self, dataset):
        self.nets[self.current_task].cpu()
        self.nets.append(get_backbone(self.args).to(self.device))
        self.net = self.nets[-1]
        self.opt = self.get_optimizer()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        return loss.item()
