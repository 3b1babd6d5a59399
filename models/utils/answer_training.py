"""Shared by methods with a head that grows by the answers of each task: their loss and their step."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from backbone.fusion import GrowingHead


class AnswerTraining:
    """Part of a ContinualModel: `head` has a row for each answer so far, `current` marks those of the task."""

    def make_head(self, width: int) -> None:
        self.head = GrowingHead(width, self.num_classes).to(self.device)
        self.register_buffer("current", torch.zeros(0, dtype=torch.bool, device=self.device))

    def grow_head(self, split) -> None:
        """Rows for the answers of a training split."""
        self.head.grow(split.targets[split.targets >= 0])
        self.current = torch.isin(self.head.answers.cpu(), split.targets).to(self.device)

    def answer_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy among the task's own answers."""
        rows = self.head.rows_of(labels)
        return cross_entropy(logits.masked_fill(~self.current, -torch.inf), rows)

    def step(self, loss: Tensor) -> Tensor:
        self.opt.zero_grad()
        loss.backward()
        if self.args.clip_grad:
            torch.nn.utils.clip_grad_norm_([p for p in self.parameters() if p.grad is not None], self.args.clip_grad)
        self.opt.step()
        return loss.detach()
