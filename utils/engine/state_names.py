"""What a checkpoint may name: attributes with data, parts of the current model, and loaders from a closed table.

A checkpoint is untrusted data. It fills what the program built; it never chooses which method runs.
"""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from utils.errors import UserError

LOADERS = {"state": "load_state", "state_dict": "load_state_dict"}  # returns the state -> loads it
MACHINERY = frozenset(vars(nn.Module())) - {"training"}  # of every module: its registries and hooks

KINDS = frozenset(
    ["plain", "leaf", "module_at", "tensor_at", "module", "code", "object", "optimizer", "scheduler"]
    + ["torch_generator", "numpy_generator", "numpy_state", "python_random"]
)  # kinds of packed values, besides list, tuple and dict


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Any failure on a damaged or crafted state, in any library, becomes a one-line UserError."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        if not isinstance(error, UserError):
            reason = (
                f"the checkpoint does not fit the model ({type(error).__name__}: {reason}); use an older one, "
                "or start over"
            )
        raise UserError(reason) from error


def check_kind(kind: object, path: str) -> None:
    """Refuse a kind of value that our checkpoints never contain."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(
            f"{path} is of kind {str(kind)[:40]!r} in the checkpoint, which is unknown; do not use this file"
        )


def scheduler_class(name: str) -> type[lr_scheduler.LRScheduler] | None:
    """The learning-rate scheduler of that dotted name among those imported so far, newest first."""
    found = lr_scheduler.LRScheduler.__subclasses__()
    for kind in found:  # which grows
        found += kind.__subclasses__()
    return next((k for k in reversed(found) if f"{k.__module__}.{k.__qualname__}" == name), None)


def loader_of(kind: type) -> tuple[str, str] | None:
    """(save, load): names of the methods that save and load objects of a class, the first of LOADERS that it has."""
    for save, load in LOADERS.items():
        if callable(getattr(kind, save, None)) and callable(getattr(kind, load, None)):
            return save, load
    return None


def take_state(value: Any, state: Any) -> None:
    """Load `state` into an object with the one method that the table allows for its class."""
    methods = loader_of(type(value))
    if methods is None:
        raise KeyError(type(value).__qualname__)
    getattr(value, methods[1])(state)


def check_attribute(m: nn.Module, name: Any, path: str) -> None:
    """Refuse an attribute that is code: machinery of a module, a method, a property."""
    plain = isinstance(name, str) and not (name.startswith("__") and name.endswith("__"))
    if not plain or name in MACHINERY or (name not in vars(m) and _is_code(type(m), name)):
        raise UserError(f"the checkpoint sets {path or name!r}, which is code, not data; do not use this file")


def check_parts(names: Any, path: str) -> None:
    """Refuse parameters, buffers and submodules under names of a module's machinery."""
    wrong = [n for n in names if not isinstance(n, str) or n in MACHINERY or n.startswith("__") or "." in n]
    if wrong:
        raise UserError(f"the checkpoint names a part {wrong[0]!r} of {path or 'the model'}; do not use this file")


def _is_code(kind: type, name: str) -> bool:
    found = inspect.getattr_static(kind, name, None)
    return (
        inspect.isroutine(found)
        or inspect.isdatadescriptor(found)
        or isinstance(found, (property, staticmethod, classmethod))
    )


def submodule(root: nn.Module, place: str) -> nn.Module:
    """The part of a model at a dotted path, found among registered modules only: no property is evaluated."""
    for name in filter(None, place.split(".")):
        part = root._modules[name]
        if part is None:
            raise KeyError(place)
        root = part
    return root


def tensor(root: nn.Module, place: str) -> Tensor:
    """The parameter or buffer of a model at a dotted path."""
    owner, _, name = place.rpartition(".")
    m = submodule(root, owner)
    found = m._parameters[name] if name in m._parameters else m._buffers[name]
    if found is None:
        raise KeyError(place)
    return found


def optimizer_class(namespace: object, name: str) -> type | None:
    """The torch optimizer with that dotted name, if there is one."""
    found = getattr(namespace, name.rpartition(".")[2], None)
    if not inspect.isclass(found) or not issubclass(found, Optimizer) or found is Optimizer:
        return None
    return found if f"{found.__module__}.{found.__qualname__}" == name else None


def load_scheduler(scheduler: Any, state: dict, path: str) -> None:
    """A scheduler takes its state as attributes: refuse one that would hide a method."""
    kind = type(scheduler)
    wrong = [k for k in state if not isinstance(k, str) or k == "optimizer" or _is_code(kind, k) or k.startswith("__")]
    if wrong:
        raise UserError(f"the checkpoint sets {path}.{wrong[0]}, which is code, not data; do not use this file")
    scheduler.load_state_dict(state)
