"""Scale-and-shift adapters (SSF; Lian et al., NeurIPS 2022, arXiv 2210.08823) after named layers.

    y = gamma * layer(x) + beta     gamma ~ N(1, 0.02), beta ~ N(0, 0.02), one number for each output channel

For a layer that is linear in its weight and bias this is the same layer with weight gamma * W and bias
gamma * b + beta, so the adapters are parametrizations of the two: code that reads them, such as
`nn.MultiheadAttention`, gets the sum, and no forward is replaced. gamma and beta are fp32, the sum has the layer's own
type: a step of 1e-3 is lost near 1 in bf16, and Adam's denominator is 0 in fp16.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from utils.errors import UserError

SPREAD = 0.02  # standard deviation of new gamma and beta
PLACES = (("weight", "bias"), ("in_proj_weight", "in_proj_bias"))  # of Linear, LayerNorm, Conv; of MultiheadAttention


class Scaled(nn.Module):
    """W -> gamma * W, one gamma for each row."""

    def __init__(self, gamma: nn.Parameter):
        super().__init__()
        self.gamma = gamma

    def forward(self, weight: Tensor) -> Tensor:
        return (self.gamma.view(-1, *[1] * (weight.dim() - 1)) * weight).to(weight.dtype)


class Shifted(nn.Module):
    """b -> gamma * b + beta."""

    def __init__(self, gamma: nn.Parameter):
        super().__init__()
        self.gamma, self.beta = gamma, nn.Parameter(SPREAD * torch.randn_like(gamma))

    def forward(self, bias: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.gamma, bias.float()).to(bias.dtype)


def layers_of(net: nn.Module, prefix: str = "") -> list[str]:
    """Names of weights that SSF can adapt under `prefix`: of linear layers, norms, convolutions, attention inputs."""
    found = []
    for path, module in net.named_modules():
        if not path.startswith(prefix):
            continue
        if isinstance(module, (nn.Linear, nn.LayerNorm, nn.Conv2d)):
            found.append(f"{path}.weight".lstrip("."))
        elif isinstance(module, nn.MultiheadAttention):
            found.append(f"{path}.in_proj_weight")
    return found


def add_ssf(net: nn.Module, names: Iterable[str]) -> list[str]:
    """Freeze all of `net` and add adapters to the named weights and their biases; returns the names."""
    names = list(names)
    if not names:
        raise UserError("scale-and-shift adapters found no linear layer or norm to adapt; choose a ViT CLIP")
    net.requires_grad_(False)
    for name in names:
        module, weight, bias = owner(net, name)
        held = getattr(module, weight)
        if getattr(module, bias) is None:
            setattr(module, bias, nn.Parameter(held.new_zeros(len(held)), requires_grad=False))
        gamma = nn.Parameter(1 + SPREAD * torch.randn(len(held), device=held.device))
        parametrize.register_parametrization(module, weight, Scaled(gamma))
        parametrize.register_parametrization(module, bias, Shifted(gamma))
    return names


def owner(net: nn.Module, name: str) -> tuple[nn.Module, str, str]:
    """The module of a weight's dotted name, and the names of weight and bias in it."""
    path, _, weight = name.rpartition(".")
    bias = dict(PLACES).get(weight)
    if bias is None:
        raise UserError(
            f"{name} is not a weight that can be scaled and shifted: use one of {', '.join(p for p, _ in PLACES)}"
        )
    return net.get_submodule(path), weight, bias


class ScaledLayers(nn.Module):
    """SSF of a network that stays as it is: `weights` are the adapted ones by name, for `torch.func.functional_call`.

    A layer without bias gets a gamma and no beta.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.names = layers_of(net)
        sizes = [len(net.get_parameter(name)) for name in self.names]
        self.gammas = nn.ParameterList(1 + SPREAD * torch.randn(size) for size in sizes)
        self.betas = nn.ParameterList(SPREAD * torch.randn(size) for size in sizes)

    def weights(self, net: nn.Module) -> dict[str, Tensor]:
        found = {}
        for name, gamma, beta in zip(self.names, self.gammas, self.betas, strict=True):
            module, weight, bias = owner(net, name)
            held, moved = getattr(module, weight), getattr(module, bias)
            found[name] = (gamma.view(-1, *[1] * (held.dim() - 1)) * held).to(held.dtype)
            if moved is not None:
                found[name.removesuffix(weight) + bias] = torch.addcmul(beta, gamma, moved.float()).to(moved.dtype)
        return found


def count(net: nn.Module) -> int:
    """Number of trained parameters of all adapters in `net`."""
    own = {id(p): p.numel() for m in net.modules() if isinstance(m, (Scaled, Shifted)) for p in m.parameters()}
    return sum(own.values())
