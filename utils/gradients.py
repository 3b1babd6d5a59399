"""Gradients as one vector, their projections, and the pull of a quadratic penalty."""

from collections.abc import Iterable

import torch
from scipy.optimize import nnls
from torch import nn
from torch.nn.utils import parameters_to_vector


def trained(net: nn.Module) -> list[nn.Parameter]:
    """The parameters of a network that are trained, in its order."""
    return [p for p in net.parameters() if p.requires_grad]


def flat(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """A copy of all values as one vector (P,)."""
    return parameters_to_vector([p.detach() for p in parameters])


def gradient(loss: torch.Tensor, parameters: list[nn.Parameter]) -> torch.Tensor:
    """d loss / d parameters as one vector (P,); zeros where the loss does not depend on a parameter."""
    return parameters_to_vector(torch.autograd.grad(loss, parameters, materialize_grads=True))


def get_grads(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """The current gradients as one vector (P,); zeros where a parameter has none."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def set_grads(parameters: list[nn.Parameter], vector: torch.Tensor) -> None:
    """Copy a vector (P,) into the gradients of the parameters."""
    for p, values in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        p.grad = values.view_as(p).clone()


def project_one(g: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """g itself where g.r >= 0, else its projection on the half-space x.r >= 0."""
    overlap = torch.dot(g, reference).clamp(max=0)
    return g - overlap / torch.dot(reference, reference).clamp(min=torch.finfo(g.dtype).tiny) * reference


def project_cone(g: torch.Tensor, references: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """g + G^T v for the v >= margin that minimizes ||g + G^T v||, with the references as rows of G (T, P).

    With margin 0 it is the vector nearest to g with G x >= 0; a margin moves it further into the cone. The problem in
    u = v - margin is non-negative least squares; the eigenvectors of G G^T (T, T) bring it from P rows down to T.
    """
    gram, overlap = (references @ references.T).double().cpu(), (references @ g).double().cpu()
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-12 * values[-1].clamp(min=torch.finfo(torch.float64).tiny)  # references may depend on each other
    root, vectors = values[kept].sqrt()[:, None], vectors[:, kept]
    tall = root * vectors.T  # (K, T), tall^T tall = G G^T
    target = -(vectors.T @ overlap) / root[:, 0] - margin * tall.sum(1)
    v = torch.full_like(overlap, margin)
    if len(tall):
        v += torch.from_numpy(nnls(tall.numpy(), target.numpy())[0])
    return g + references.T @ v.to(references)


@torch.no_grad()
def add_pull(
    parameters: list[nn.Parameter], anchor: torch.Tensor, weight: torch.Tensor, strength: float
) -> torch.Tensor:
    """The penalty strength * sum weight (theta - anchor)^2; its gradient is added to the existing ones.

    The closed form of the gradient needs no graph over all parameters.
    """
    away = parameters_to_vector(parameters) - anchor
    pull = weight * away
    for p, values in zip(parameters, pull.split([p.numel() for p in parameters]), strict=True):
        values = values.view_as(p) * (2 * strength)
        p.grad = values if p.grad is None else p.grad.add_(values)
    return strength * torch.dot(pull, away)
