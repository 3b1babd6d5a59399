"""Replay whose layers are held to learned Lipschitz budgets."""

from models.utils.lider_model import LiderOptimizer, add_lipschitz_args
from utils.args import ArgumentParser, add_rehearsal_args
from utils.buffer import Buffer


class DropLipschitz(LiderOptimizer):
    NAME = 'drop_lipschitz'
    COMPATIBILITY = ['class-il', 'task-il']

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        add_rehearsal_args(parser)
        add_lipschitz_args(parser)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.buffer = Buffer(self.args.buffer_size)

    def begin_task(self, dataset):
        if self.current_task == 0:
            self.net.set_return_prerelu(True)
            self.init_net(dataset)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        if not self.buffer.is_empty():
            buf_inputs, buf_labels = self.buffer.get_data(self.args.minibatch_size, transform=self.transform, device=self.device)
            buf_outputs, feats = self.net(buf_inputs, returnt='full')
            loss += self.loss(buf_outputs, buf_labels)
            lip_inputs = [buf_inputs] + feats
            if self.args.alpha_lip_lambda > 0:
                loss += self.args.alpha_lip_lambda * self.minimization_lip_loss(lip_inputs)
            if self.args.beta_lip_lambda > 0:
                loss += self.args.beta_lip_lambda * self.dynamic_budget_lip_loss(lip_inputs)
        loss.backward()
        self.opt.step()
        self.buffer.add_data(examples=not_aug_inputs, labels=labels)
        return loss.item()
