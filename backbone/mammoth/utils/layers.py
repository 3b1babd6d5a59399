"""A classifier that grows."""

import torch
from torch import nn


class IncrementalClassifier(nn.Module):
    """A linear layer; `adapt(n)` widens it to n outputs and keeps the old weights."""

    def __init__(self, in_features: int, num_classes: int = 2):
        super().__init__()
        self.classifier = nn.Linear(in_features, num_classes)

    @torch.no_grad()
    def adapt(self, num_classes: int) -> None:
        old = self.classifier
        if num_classes <= old.out_features:
            return
        self.classifier = nn.Linear(old.in_features, num_classes).to(old.weight.device, old.weight.dtype)
        self.classifier.weight[: old.out_features] = old.weight
        self.classifier.bias[: old.out_features] = old.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(x)
