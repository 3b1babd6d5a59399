"""Weights of a network as named tensors: means of snapshots, and interpolation between two networks."""

import torch
from torch import Tensor, nn


def _paired(net: nn.Module, other: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The network's tensors and the others of the same names, on the network's device."""
    ours = dict(net.named_parameters())
    return [ours[n].data for n in other], [v.to(ours[n].device, ours[n].dtype) for n, v in other.items()]


@torch.no_grad()
def add_to_mean(mean: dict[str, Tensor], net: nn.Module | dict[str, Tensor], count: int) -> None:
    """mean <- (count * mean + weights) / (count + 1), in place: `mean` is of `count` snapshots so far."""
    ours = net if isinstance(net, dict) else dict(net.named_parameters())
    torch._foreach_lerp_(list(mean.values()), [ours[n].detach().to(v.device) for n, v in mean.items()], 1 / (count + 1))


@torch.no_grad()
def set_weights(net: nn.Module, weights: dict[str, Tensor]) -> None:
    """weights <- the given ones, in place."""
    ours, given = _paired(net, weights)
    torch._foreach_copy_(ours, given)


@torch.no_grad()
def interpolate(net: nn.Module, anchor: dict[str, Tensor], share: float) -> None:
    """weights <- (1 - share) * anchor + share * weights, in place; 1 keeps them bit for bit, 0 gives the anchor's."""
    if share == 1:
        return
    ours, given = _paired(net, anchor)
    if share == 0:
        torch._foreach_copy_(ours, given)
    else:
        torch._foreach_lerp_(ours, given, 1 - share)


def squared_distance(net: nn.Module | dict[str, Tensor], anchor: dict[str, Tensor]) -> Tensor:
    """Sum over parameters of (weight - anchor)^2, with gradient."""
    ours = net if isinstance(net, dict) else dict(net.named_parameters())
    return torch.stack([(ours[n] - v.to(ours[n].device)).square().sum() for n, v in anchor.items()]).sum()


def weights_of(net: nn.Module, trained_only: bool = True) -> dict[str, Tensor]:
    """Copies of the parameters, by default of the trained ones."""
    return {n: p.detach().clone() for n, p in net.named_parameters() if p.requires_grad or not trained_only}


def without_decay_of_vectors(params: list) -> list[dict]:
    """Parameters, or groups of them, as groups in which those of one dimension have no weight decay."""
    groups = params if isinstance(params[0], dict) else [{"params": params}]
    parts = []
    for group in groups:
        vectors, others = ([p for p in group["params"] if (p.dim() < 2) is small] for small in (True, False))
        parts += [group | {"params": others}, group | {"params": vectors, "weight_decay": 0.0}]
    return [part for part in parts if part["params"]]
