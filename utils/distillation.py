"""Distillation: how far a network's answers are from a teacher's."""

import torch
import torch.nn.functional as F


def soft_divergence(outputs: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(softmax(teacher / T) || softmax(outputs / T)) of logits (B, C), mean over the batch.

    Its gradient is that of the cross-entropy with the teacher's soft targets, and it is 0 where the two agree.
    """
    wanted = (teacher / temperature).log_softmax(1)
    return F.kl_div((outputs / temperature).log_softmax(1), wanted, reduction="batchmean", log_target=True)
