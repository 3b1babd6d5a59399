"""Supervised contrastive loss (arXiv 2004.11362), and SimCLR's where there are no labels."""

import torch
from torch import nn

from utils.errors import UserError


class SupConLoss(nn.Module):
    """-T/T_base mean over positives p of log( exp(a.p / T) / sum over all others n of exp(a.n / T) ), of each anchor a.

    Features (B, views, ...) of unit length. Positives share the anchor's label; or mask[i, j] says which samples do;
    without either only views of one image do. contrast_mode "one" takes the first views alone as anchors.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        contrast_mode: str = "all",
        base_temperature: float = 0.07,
        reduction: str = "mean",
    ):
        super().__init__()
        if contrast_mode not in {"all", "one"} or reduction not in {"mean", "sum", "none"}:
            raise UserError("SupConLoss: contrast_mode is all or one, reduction is mean, sum or none")
        self.temperature, self.contrast_mode = temperature, contrast_mode
        self.base_temperature, self.reduction = base_temperature, reduction

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None, mask: torch.Tensor | None = None):
        if features.dim() < 3 or (labels is not None and mask is not None):
            raise UserError("SupConLoss: features are (batch, views, ...), and either labels or a mask may be given")
        count, views = features.shape[:2]
        rows = features.flatten(2).transpose(0, 1).flatten(0, 1)  # (V B, D), all first views in front
        if mask is None:
            labels = torch.arange(count, device=rows.device) if labels is None else labels.flatten()
            mask = labels[:, None] == labels[None]
        n_anchors = len(rows) if self.contrast_mode == "all" else count
        self_pair = torch.eye(len(rows), dtype=torch.bool, device=rows.device)[:n_anchors]
        positive = mask.to(rows.device, rows.dtype).repeat(views, views)[:n_anchors].masked_fill(self_pair, 0)
        similar = (rows[:n_anchors] @ rows.T / self.temperature).masked_fill(self_pair, -torch.inf)
        log_share = (similar - similar.logsumexp(1, keepdim=True)).masked_fill(self_pair, 0)
        mean = (positive * log_share).sum(1) / positive.sum(1).clamp(min=1)
        losses = -self.temperature / self.base_temperature * mean
        return {"mean": losses.mean, "sum": losses.sum, "none": lambda: losses}[self.reduction]()
