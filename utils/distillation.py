"""Distillation: how far a network's outputs are from a teacher's."""

import torch
import torch.nn.functional as F


def row_divergence(outputs: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(softmax(teacher / T) || softmax(outputs / T)) of each row of logits (..., C) -> (...); 0 if equal."""
    return _terms(outputs, teacher, temperature).sum(-1)


def soft_divergence(outputs: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The same of logits (B, C), mean over the batch.

    Its gradient is that of the cross-entropy with the teacher's soft targets.
    """
    return _terms(outputs, teacher, temperature).sum() / len(outputs)


def _terms(outputs: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    wanted = (teacher / temperature).log_softmax(-1)
    return F.kl_div((outputs / temperature).log_softmax(-1), wanted, reduction="none", log_target=True)
