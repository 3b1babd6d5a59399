"""Networks: MammothBackbone, the interface of every network, and get_backbone, which builds one by name."""

import inspect
from argparse import Namespace
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from utils.cli import plugins, registry
from utils.errors import UserError

__path__ = plugins.search_path(__name__, __path__)
ReturnTypes = Literal["out", "features", "both", "full", "all"]


class MammothBackbone(nn.Module):
    """A network whose `forward(x, returnt)` returns, for each returnt

    out: logits; features: the vector before the last layer; both: (logits, features); full (or all): (logits, maps of
    the stages). The last layer is the attribute `classifier`.
    """

    def __init__(self):
        super().__init__()
        self.device = torch.device("cpu")

    def _apply(self, fn, *args, **kwargs):
        """Every move (to, cuda, cpu, also of an enclosing module) goes through here: keep `device` correct."""
        super()._apply(fn, *args, **kwargs)
        first = next(self.parameters(), None)
        self.device = self.device if first is None else first.device
        return self

    def forward(self, x: torch.Tensor, returnt: ReturnTypes = "out"):
        raise NotImplementedError(f"{type(self).__name__} does not define forward()")

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x, returnt="features")

    def get_params(self) -> torch.Tensor:
        """All parameters as one vector, differentiable."""
        return nn.utils.parameters_to_vector(self.parameters())

    @torch.no_grad()
    def set_params(self, new_params: torch.Tensor) -> None:
        """Copy a vector in the order of get_params into the parameters."""
        for parameter, values in zip(self.parameters(), self._parts(new_params), strict=True):
            parameter.copy_(values)

    def get_grads(self) -> torch.Tensor:
        """All gradients as one vector; zeros where a parameter has none."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters()]
        return torch.cat([g.reshape(-1) for g in grads])

    def set_grads(self, new_grads: torch.Tensor) -> None:
        """Set the gradients from a vector in the order of get_params."""
        for parameter, values in zip(self.parameters(), self._parts(new_grads), strict=True):
            parameter.grad = values.to(parameter.device, parameter.dtype, copy=True)

    def _parts(self, vector: torch.Tensor) -> list[torch.Tensor]:
        parameters = list(self.parameters())
        sizes = [p.numel() for p in parameters]
        if vector.dim() != 1 or len(vector) != sum(sizes):
            raise ValueError(f"expected a vector of {sum(sizes)} numbers, got shape {tuple(vector.shape)}")
        return [v.view_as(p) for v, p in zip(vector.split(sizes), parameters, strict=True)]


def answer(returnt: ReturnTypes, classifier: nn.Module, features: torch.Tensor, maps):
    """What `forward` returns, given the features."""
    if returnt == "features":
        return features
    if returnt not in {"out", "both", "full", "all"}:
        raise ValueError(f"returnt '{returnt}' is not one of out, features, both, full")
    out = classifier(features)
    return out if returnt == "out" else (out, features) if returnt == "both" else (out, maps)


def xavier(module: nn.Module) -> None:
    """For `net.apply`: Glorot-uniform weights and zero biases in linear layers."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def num_flat_features(x: torch.Tensor) -> int:
    """Numbers per sample."""
    return x[0].numel()


def register_backbone(name: str) -> Callable:
    """Decorator: make a class or function available as `--backbone name`; its parameters become flags."""
    return registry.register("backbone", name)


def get_backbone_names() -> list[str]:
    """Names of all networks, without importing them."""
    return registry.names("backbone")


def get_backbone_class(args: Namespace | str) -> Callable:
    """The class or function for `args.backbone`, or for a name; `timm:<model>` gives timm's."""
    return registry.load("backbone", (args if isinstance(args, str) else args.backbone).partition(":")[0])


def get_backbone(args: Namespace, num_classes: int | None = None) -> nn.Module:
    """A new network named by `args.backbone`, with `num_classes` outputs (default: args.num_classes)."""
    from utils.cli.signatures import arguments_for

    maker = get_backbone_class(args)
    name, _, variant = args.backbone.partition(":")
    parameters = inspect.signature(maker).parameters
    given = arguments_for(maker, args)
    if "_variant" in parameters:
        given["_variant"] = variant
    elif variant:
        raise UserError(f"backbone {name} does not have variants: write --backbone {name}, without ':{variant}'")
    if "num_classes" in parameters:
        given["num_classes"] = args.num_classes if num_classes is None else num_classes
    missing = [
        n
        for n, p in parameters.items()
        if p.default is p.empty and n not in given and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}
    ]
    if missing:
        raise UserError(f"backbone {name} needs " + ", ".join(f"--{n}" for n in missing))
    return maker(**given)
