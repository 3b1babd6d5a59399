"""Bytes that a method keeps, by attribute."""

from collections.abc import Iterator

import torch
from torch import nn

from utils.pair import Pair

# attributes of the run, not the method's memory
NOT_STORED = {
    "net",
    "opt",
    "loss",
    "args",
    "dataset",
    "transform",
    "original_transform",
    "normalization_transform",
    "scheduler",
    "custom_scheduler",
    "device",
}


def tensors_of(value, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """Every tensor reachable from a value through containers, modules, arrays and plain objects."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, nn.Module):
        plain = (t for m in value.modules() for t in vars(m).values() if isinstance(t, torch.Tensor))
        for tensor in (*value.parameters(), *value.buffers(), *plain):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor
    elif isinstance(value, Pair):
        yield from (value.image, value.text)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item, seen)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from tensors_of(item, seen)
    elif hasattr(value, "__array__") and hasattr(value, "nbytes") and not isinstance(value, (int, float)):
        yield torch.as_tensor(value)


def nbytes(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def stored_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes that a method keeps besides its network, by attribute; what the network shares is not counted twice."""
    seen = {id(t) for t in tensors_of(getattr(model, "net", None))}
    found: dict[str, int] = {}
    attributes = {**vars(model), **model._modules, **model._parameters, **model._buffers}
    for name, value in attributes.items():
        if name in NOT_STORED or name.startswith("_") or value is None:
            continue
        if hasattr(value, "stored_bytes") and not isinstance(value, type):
            size = value.stored_bytes()
            size = sum(size.values()) if isinstance(size, dict) else size
        elif isinstance(getattr(value, "nbytes", None), int) and not isinstance(value, torch.Tensor):
            size = value.nbytes
        else:
            size = nbytes(tensors_of(value, seen))
        if size:
            found[name] = int(size)
    return found
