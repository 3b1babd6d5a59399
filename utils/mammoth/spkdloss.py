"""Similarity-preserving distillation (arXiv 1907.09682): images that are alike for the teacher stay alike for the
student."""

import torch
from torch import nn
from torch.nn.functional import normalize

from utils.errors import UserError


class SPKDLoss(nn.Module):
    """|| G_T - G_S ||_F^2 with G = F F^T of features (B, ...) with rows of unit length; "batchmean" divides by B^2."""

    def __init__(self, reduction: str = "batchmean"):
        super().__init__()
        if reduction not in {"batchmean", "mean", "sum"}:
            raise UserError(f"SPKDLoss: reduction is batchmean, mean or sum, not '{reduction}'")
        self.reduction = reduction

    def forward(self, teacher_outputs: torch.Tensor, student_outputs: torch.Tensor) -> torch.Tensor:
        grams = [normalize(f @ f.T, dim=1) for f in (teacher_outputs.flatten(1), student_outputs.flatten(1))]  # (B, B)
        total = (grams[0] - grams[1]).pow(2).sum()
        return total if self.reduction == "sum" else total / len(teacher_outputs) ** 2
