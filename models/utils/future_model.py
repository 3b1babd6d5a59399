"""FutureModel: a method that can also name classes it has not been trained on."""

from abc import ABC, abstractmethod

import torch

from models.utils.continual_model import ContinualModel
from utils.pair import Inputs


class FutureModel(ContinualModel, ABC):
    """With --eval_future, `future_forward` scores every class of the dataset, seen and unseen."""

    @abstractmethod
    def future_forward(self, x: Inputs, **kwargs) -> torch.Tensor:
        """Logits over all classes of the dataset."""

    def change_transform(self, dataset) -> None:
        """Called on the evaluation stream after each of its tasks is loaded; the newest test loader is its last."""

    @abstractmethod
    def observe(self, inputs: Inputs, labels: torch.Tensor, not_aug_inputs: Inputs, epoch: int | None = None, **extras):
        """One step of training."""
