"""Trains once at the end: the loop's learning rate is 0 by set_defaults; choices of --clip_backbone of its own."""

from models.utils.continual_model import ContinualModel
from utils.args import ArgumentParser, add_rehearsal_args
from utils.buffer import Buffer


class DropDreaming(ContinualModel):
    NAME = "drop_dreaming"
    COMPATIBILITY = ["class-il", "task-il"]

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        add_rehearsal_args(parser)
        parser.add_argument("--fitting_lr", type=float, default=0.05)
        parser.add_argument("--clip_backbone", type=str, default="ViT-L/14", choices=["ViT-B/16", "ViT-L/14"])
        parser.set_defaults(lr=0)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.buffer = Buffer(self.args.buffer_size)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.buffer.add_data(examples=not_aug_inputs, labels=labels)
        return 0

    def end_task(self, dataset):
        opt = self.get_optimizer(lr=self.args.fitting_lr)
        for _ in range(3):
            x, y = self.buffer.get_data(self.args.minibatch_size, transform=self.transform, device=self.device)
            opt.zero_grad()
            self.loss(self.net(x), y).backward()
            opt.step()
