"""Distillation of the answer head alone: logits of old answers stay near those of the head after the task before.

Both heads read the same state, so what is held is the head and not the network under it. CluMo uses it by default;
prompt methods take it by a flag, so that they can be compared with the same help.
"""

from argparse import ArgumentParser

from torch import Tensor
from torch.nn.functional import mse_loss

from utils.distillation import soft_divergence
from utils.flags import non_negative

KL_TEMPERATURE = 2.0


def add_head_distillation_args(parser: ArgumentParser, weight: float) -> None:
    """The flags of the distillation; `weight` is the method's default."""
    add = parser.add_argument
    add("--kd_weight", type=non_negative, default=weight, help="weight of the distillation from the previous head")
    add("--kd_type", choices=["mse", "kl"], default="mse", help="distillation of logits, or of softmaxes")


def head_divergence(logits: Tensor, seen: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """Distance of logits (B, A) to those of the rows `teacher` (A', W + 1) on the states `seen` (B, W), A' <= A."""
    seen = seen.detach()
    wanted = seen @ teacher[:, :-1].T + teacher[:, -1]
    own = logits[:, : wanted.shape[1]]
    if kind == "mse":
        return mse_loss(own, wanted)
    return KL_TEMPERATURE**2 * soft_divergence(own, wanted, KL_TEMPERATURE)
