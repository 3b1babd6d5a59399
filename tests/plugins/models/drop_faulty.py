"""A method whose own code goes wrong in the second step, or that takes long over one operation."""

import time

import torch

from models.utils.continual_model import ContinualModel


class DropFaulty(ContinualModel):
    NAME = "drop_faulty"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--how", type=str, default="divides", choices=["divides", "sleeps", "computes"])
        return parser

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        if self.task_iteration == 1:
            self.go_wrong(inputs)
        return 0.0

    def go_wrong(self, inputs):
        if self.args.how == "divides":
            return len(inputs) / 0
        print("step 2", flush=True)
        if self.args.how == "computes":
            return torch.ones(9000, 9000) @ torch.ones(9000, 9000)
        time.sleep(60)
