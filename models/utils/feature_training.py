"""Shared by methods that train small parts on the cached features of a frozen CLIP: epochs of shuffled batches."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.utils.vlm_model import VLMModel
from utils.schedulers import get_scheduler


class FeatureTraining(VLMModel):
    """Trains inside end_task by `train_on`; a method gives the loss of a batch of features."""

    trains_in_loop = False
    schedule = None  # of the learning rate, within `train_on`

    def train_on(
        self,
        name: str,
        features: Tensor,
        labels: Tensor,
        loss: Callable[..., Tensor],
        epochs: int | None = None,
        params: list | None = None,
        lr: float | None = None,
        size: int | None = None,
    ) -> None:
        """Epochs of steps on loss(x, y, rows of the batch, number of the step in its epoch)."""
        if name not in self.work_done:
            self.opt = self.get_optimizer(params, lr)
            self.schedule = get_scheduler(self, self.args, reload_optim=False)
        epochs = self.args.n_epochs if epochs is None else epochs
        for _ in self.work(name, min(1, epochs) if self.args.debug_mode else epochs):
            self.begin_pass(len(labels))
            order = torch.randperm(len(labels)).to(labels.device)
            batches = enumerate(order.split(size or self.args.batch_size))
            losses = [self.one_step(loss(features[rows], labels[rows], rows, n)) for n, rows in batches]
            if self.schedule is not None:
                self.schedule.step()
            self.work_loss = torch.stack(losses).mean()
        self.schedule = None

    def begin_pass(self, n: int) -> None:
        """Before each epoch over n images."""

    def one_step(self, loss: Tensor) -> Tensor:
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return loss.detach()
