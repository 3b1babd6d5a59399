"""Replay of the past only, stored logits written anew in place, balanced draws, the memory's own columns."""

import numpy as np
import torch
import torch.nn.functional as F

from models.utils.continual_model import ContinualModel
from utils.args import ArgumentParser, add_rehearsal_args
from utils.buffer import Buffer


class DropMasked(ContinualModel):
    NAME = 'drop_masked'
    COMPATIBILITY = ['class-il', 'task-il']

    @staticmethod
    def get_parser(parser) -> ArgumentParser:
        add_rehearsal_args(parser)
        parser.add_argument('--strategy', type=str, default='balancoir', choices=['reservoir', 'balancoir', 'labrs'])
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset=dataset)
        self.buffer = Buffer(self.args.buffer_size, self.device, sample_selection_strategy=self.args.strategy)
        self.update_counter = torch.zeros(self.args.buffer_size)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        outputs = self.net(inputs)
        losses = F.cross_entropy(outputs, labels, reduction='none')
        loss = losses.mean()
        if not self.buffer.is_empty() and self.current_task > 0:
            idx, plain, x, y, logits = self.buffer.get_data(
                self.args.minibatch_size, transform=self.transform, mask_task_out=self.current_task, cpt=self.cpt,
                return_index=True, return_not_aug=True, not_aug_transform=self.normalization_transform, device=self.device)
            assert (y < self.n_past_classes).all() and plain.shape == x.shape
            loss = loss + F.mse_loss(self.net(x), logits) + self.loss(self.net(plain), y)
            again = self.buffer.get_data(len(idx), force_indexes=idx)
            assert torch.equal(again[1], y)
            self.buffer.logits[idx] = logits + 0.01
            self.update_counter[idx.cpu()] += 1
            bal_x, bal_y, _ = self.buffer.get_balanced_data(self.args.minibatch_size, transform=self.transform, n_classes=2)
            loss = loss + self.loss(self.net(bal_x), bal_y)
        loss.backward()
        self.opt.step()
        scores = losses.detach() if self.args.strategy == 'labrs' else None
        self.buffer.add_data(examples=not_aug_inputs, labels=labels, logits=outputs.data, sample_selection_scores=scores)
        return loss.item()

    def end_task(self, dataset):
        assert 'labels' in self.buffer.used_attributes and hasattr(self.buffer, 'examples')
        assert not hasattr(self.buffer, 'task_labels')
        stored = self.buffer.labels[:len(self.buffer)]
        values, counts = stored.unique(return_counts=True)
        assert len(values) <= self.n_seen_classes and counts.sum() == min(self.buffer.num_seen_examples, self.buffer.buffer_size)
        assert np.isfinite(self.buffer.examples.cpu().numpy()).all()
        for x, y, _ in self.buffer.get_dataloader(self.args, batch_size=4, shuffle=False):
            assert len(x) == len(y)
