"""Shared by methods that train adapters inside a frozen CLIP's towers, in end_task, on images without augmentation."""

import math

import torch
from torch.nn.functional import cross_entropy, normalize

from models.utils.feature_training import FeatureTraining

FLOOR = 0.01  # share of the learning rate at the end of the cosine


class AdapterTraining(FeatureTraining):
    """`step` on images of the task's names; `adapted` gives its features under the adapters."""

    FROZEN_TOWER = False

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.net.requires_grad_(False)
        names = zip(self.dataset.get_class_names(), self.class_templates(), strict=True)
        self.tokens = self.net.tokenize([own[0].format(name) for name, own in names])  # (C, L), on the CPU

    def get_parameters(self):
        return [p for p in self.net.parameters() if p.requires_grad]

    def checkpoint_skip(self):
        return super().checkpoint_skip() | {"net.tokenizer", "net.preprocess"}

    def loader_of(self, dataset):
        """The task's batches, prepared as CLIP's test images."""
        self.use_clip_preprocessing(dataset.train_loader.dataset)
        return dataset.train_loader.with_batch_size(self.args.batch_size)

    def set_rate(self, rate: float, done: float) -> None:
        """A cosine from the rate to a hundredth of it, at `done` of 1."""
        for group in self.opt.param_groups:
            group["lr"] = rate * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2)

    def task_names(self) -> torch.Tensor:
        """Unit features (K, D) of the task's names, with gradient."""
        tokens = self.tokens[self.n_past_classes : self.n_seen_classes]
        return normalize(self.net.encode_text(tokens).float(), dim=1)

    def step(self, inputs, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy over the task's names."""
        known, labels = labels >= 0, labels.to(self.device)
        scores = self.logits(self.encode(inputs[known].to(self.device)), self.task_names())
        return self.one_step(cross_entropy(scores, labels[labels >= 0].long() - self.n_past_classes))

    @torch.no_grad()
    def adapted(self, loader) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit features (N, D) and labels (N,) of the task's labeled images under the adapters."""
        parts = [(self.encode(x.to(self.device)), y) for x, y, *_ in loader.epoch(0)]
        features, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        known, labels = (labels >= 0).to(self.device), labels.to(self.device).long()
        return normalize(features, dim=1)[known], labels[known]
