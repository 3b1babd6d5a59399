"""The complete state of a model, not only its state_dict: counters, memories, optimizers, copies of networks, flags.

`capture` walks the module and packs each attribute as a pair (kind, content) that `utils.engine.checkpoint.save`
can write; `restore` loads them into a newly built module of the same class and arguments.
"""

import copy
import inspect
import itertools
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Set
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from utils.engine import state_names
from utils.engine.moved import renamed
from utils.engine.random_states import random_state
from utils.errors import UserError
from utils.pair import Pair

# Attributes of a model and its submodules that the constructor rebuilds from the same arguments. A submodule with such
# a name is still saved if it has parameters (a trainable loss).
SKIP = frozenset(
    ["args", "dataset", "loss", "transform", "original_transform", "normalization_transform", "device", "eval_dataset"]
    + ["bf16_products"]  # hooks of utils.precision
)
GROWING = {"Linear", "Embedding", "ParameterList", "ParameterDict"}  # of torch.nn: may have changed shape in training
LEAVES = {type(None), bool, int, float, str, bytes, range, torch.dtype, torch.device, torch.Size, Pair}
ARRAY_KINDS = "biufcSUmM"  # kinds of numpy dtypes: all but objects and records
KEPT = "kept"  # stands for a submodule in SKIP: the new module's own is kept
SETS = (set, frozenset)
Packed = tuple[str, Any] | None  # (kind, content), or None for what cannot be captured


def capture(module: nn.Module, skip: frozenset[str] | set[str] = SKIP) -> tuple[dict, list[str]]:
    """The state of `module`, and the names of attributes that could not be captured (for a warning).

    Held: parameters and buffers (also non-persistent ones) with their requires_grad, training flags, submodules made
    after construction, and of the module and every submodule the instance attributes made of plain values, tensors,
    arrays, random generators, optimizers, schedulers, modules, and objects with state() / load_state(nested) or
    state_dict() / load_state_dict(). Not included: gradients, hooks, what SKIP names, the attributes and submodules
    whose dotted path is in `skip` (such as "net" for a frozen encoder), and what the list names. The state refers to
    the live tensors: write it with `utils.engine.checkpoint.save` before training continues.
    """
    packer = _Packer(module, skip)
    return packer.module(module, ""), packer.unsaved


def restore(module: nn.Module, state: dict, skip: frozenset[str] | set[str] = SKIP) -> None:
    """Bring a newly built `module` to a captured state read by `utils.engine.checkpoint.load`; it then owns the state.

    Tensors that require gradients are filled in place where shapes allow, so that optimizers still refer to them. A
    submodule that the new module lacks is a copy of one of the same class, or a torch.nn module built by name.
    UserError names anything else.
    """
    with state_names.one_line():
        _Restorer(module, skip).run(renamed(state))


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _holds_scheduler(packed: Any) -> bool:
    kind, content = packed
    if kind in {"list", "tuple", "dict"}:
        return any(map(_holds_scheduler, content.values() if kind == "dict" else content))
    return bool(kind == "scheduler")


class _Packer:
    def __init__(self, root: nn.Module, skip: Set[str]) -> None:
        self.root, self.skip = root, skip
        self.unsaved: list[str] = []
        self.internal = set(vars(nn.Module()))
        self.modules = {id(m): path for path, m in root.named_modules()}
        self.tensors = {id(t): path for path, t in itertools.chain(root.named_parameters(), root.named_buffers())}
        self.done: dict[int, str] = {}  # modules packed so far -> path
        self.open: set[int] = set()  # containers being packed: one that contains itself would never end
        self.first: dict[tuple, str] = {}  # class and parameter shapes -> path of the first such module
        for path, m in root.named_modules():
            self.first.setdefault(self.signature(m), path)

    def signature(self, m: nn.Module) -> tuple:
        return _name(type(m)), *((name, p.shape) for name, p in m.named_parameters())

    def module(self, m: nn.Module, path: str) -> dict:
        if id(m) in self.done:
            return {"same_as": self.done[id(m)]}
        self.done[id(m)] = path
        twin = self.first.get(self.signature(m))
        node: dict[str, Any] = {
            "class": _name(type(m)),
            "copy_of": twin if twin != path else None,
            "training": m.training,
            "parameters": dict(m._parameters),
            "buffers": dict(m._buffers),
            "not_persistent": sorted(m._non_persistent_buffers_set),
            "children": {},
            "attributes": {},
        }
        for name, child in m._modules.items():
            place = _join(path, name)
            made_anew = name in SKIP and (child is None or next(child.parameters(), None) is None)
            kept = made_anew or (place in self.skip and name not in SKIP)
            node["children"][name] = KEPT if kept else None if child is None else self.module(child, place)
        ours = "site-packages" not in (getattr(sys.modules.get(type(m).__module__), "__file__", None) or "")
        for name, value in vars(m).items():
            if name not in self.internal and name not in SKIP and _join(path, name) not in self.skip:
                packed = self.pack(value, _join(path, name))
                if packed is not None:
                    node["attributes"][name] = packed
                elif ours:  # library modules keep functions that never change
                    self.unsaved.append(_join(path, name))
        return node

    def pack(self, value: Any, path: str) -> Packed:
        """(kind, content), or None for what cannot be captured."""
        if type(value) in LEAVES:
            return "plain", value
        if isinstance(value, (np.ndarray, np.generic)):
            return ("plain", value) if value.dtype.kind in ARRAY_KINDS else None
        if isinstance(value, nn.Module):
            place = self.modules.get(id(value))
            return ("module_at", place) if place is not None else ("module", self.module(value, path))
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_quantized:
                return None
            if id(value) in self.tensors:
                return "tensor_at", self.tensors[id(value)]
            return ("leaf" if value.requires_grad and value.is_leaf else "plain"), value
        if isinstance(value, Optimizer):
            groups = [[self.tensors.get(id(p)) for p in group["params"]] for group in value.param_groups]
            kept = {"defaults": value.defaults, "state": value.state_dict()}
            return "optimizer", {"class": _name(type(value)), "params": groups, **kept}
        if isinstance(value, lr_scheduler.LRScheduler):
            owner = next((k for k, v in vars(self.root).items() if v is value.optimizer), None)
            return "scheduler", {"class": _name(type(value)), "optimizer": owner, "state": value.state_dict()}
        if (drawn := random_state(value)) is not None:
            return drawn
        if isinstance(value, (list, tuple, dict, deque, *SETS)):
            return self.container(value, path)
        if inspect.isclass(value) or inspect.isroutine(value):
            return self.code(value)
        methods = state_names.loader_of(type(value))
        if methods is not None:
            return "object", [_name(type(value)), methods[1], getattr(value, methods[0])()]
        return random_state(value)

    def container(self, value: Any, path: str) -> Packed:
        if type(value) not in (list, tuple, dict, deque, OrderedDict, Counter, defaultdict, *SETS):
            return None  # a namedtuple, or some other class
        if id(value) in self.open:
            return None
        self.open.add(id(value))
        pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
        packed: list[tuple[Any, Any]] = [(key, self.pack(v, _join(path, str(key)))) for key, v in pairs]
        keys_plain = all((self.pack(key, path) or " ")[0] == "plain" for key, _ in pairs)
        self.open.discard(id(value))
        if not keys_plain or any(p is None for _, p in packed):
            return None
        if all(p[0] == "plain" for _, p in packed):
            return "plain", value
        if type(value) is dict:
            return "dict", dict(packed)
        return (type(value).__name__, [p for _, p in packed]) if type(value) in (list, tuple) else None

    @staticmethod
    def code(value: Any) -> Packed:
        """Functions and classes with a name in a module are constants of the program; lambdas are not."""
        found: Any = sys.modules.get(getattr(value, "__module__", None) or "")
        for part in getattr(value, "__qualname__", "<").split("."):
            found = getattr(found, part, None)
        return ("code", f"{value.__module__}.{value.__qualname__}") if found is value else None


class _Restorer:
    def __init__(self, root: nn.Module, skip: Set[str]) -> None:
        self.root, self.skip = root, skip
        self.fresh = dict(root.named_modules())
        first = next(itertools.chain(root.parameters(), root.buffers()), None)
        self.device = torch.device("cpu") if first is None else first.device
        self.built: dict[str, nn.Module] = {}  # by the path at which they were captured
        self.used: set[int] = set()  # ids of filled modules and tensors: what two names share may have to be split
        self.made: dict[int, torch.Tensor] = {}  # id of a saved tensor -> the tensor that now has its values
        self.todo: list[tuple[nn.Module, dict, str]] = []  # modules whose attributes are not set yet

    def run(self, state: dict) -> None:
        if _name(type(self.root)) != state["class"]:
            raise UserError(
                f"the checkpoint contains a {state['class']}, not a {_name(type(self.root))}; pass its --model"
            )
        self.fill(self.root, state, "")
        for late in (False, True):  # schedulers need their optimizers
            for m, node, path in self.todo:  # grows by modules that are built while setting attributes
                for name, packed in node["attributes"].items():
                    state_names.check_attribute(m, name, _join(path, name))
                    if _join(path, name) not in self.skip and late == _holds_scheduler(packed):
                        value = self.unpack(packed, vars(m).get(name), _join(path, name))
                        for registry in (m._modules, m._parameters, m._buffers):
                            registry.pop(name, None)
                        vars(m)[name] = value

    def fill(self, m: nn.Module, node: dict, path: str) -> None:
        """Parameters, buffers and children of `m`, which is of the right class."""
        self.built[path] = m
        self.used.add(id(m))
        self.todo.append((m, node, path))
        registries: dict[str, dict[str, Any]] = {
            "parameters": m._parameters,
            "buffers": m._buffers,
            "children": m._modules,
        }
        for kind, registry in registries.items():
            old = dict(registry)
            registry.clear()  # and filled in the saved order, which ModuleList and optimizers depend on
            state_names.check_parts(node[kind], path)
            make = self.build if kind == "children" else partial(self.tensor, m)
            for name, saved in node[kind].items():
                vars(m).pop(name, None)  # a None in its place
                if saved is None:
                    registry[name] = None
                elif isinstance(saved, str):  # KEPT
                    registry[name] = old.get(name)
                else:
                    registry[name] = make(saved, old.get(name), _join(path, name))
        m._non_persistent_buffers_set = set(node["not_persistent"])
        m.training = node["training"]

    def tensor(self, m: nn.Module, saved: torch.Tensor, old: torch.Tensor | None, path: str) -> torch.Tensor:
        """`old` filled with the saved values, or a new tensor where it does not fit; tied tensors are tied again."""
        if id(saved) in self.made:
            return self.made[id(saved)]
        new = None
        if old is not None and old.shape == saved.shape and old.dtype == saved.dtype:
            new = None if id(old) in self.used else old
        elif old is not None and type(m).__module__.startswith("torch.nn") and type(m).__name__ not in GROWING:
            here, there = f"{tuple(old.shape)} {old.dtype}", f"{tuple(saved.shape)} {saved.dtype}"
            raise UserError(
                f"{path} is {here} here and {there} in the checkpoint; use the backbone and flags of the saved run"
            )
        if new is None:
            new = torch.empty_like(saved.detach(), device=self.device)
            new = nn.Parameter(new, saved.requires_grad) if isinstance(saved, nn.Parameter) else new
        new.data.copy_(saved.data)
        new.requires_grad_(saved.requires_grad)
        self.made[id(saved)] = new
        self.used.add(id(new))
        return new

    def build(self, node: dict, old: nn.Module | None, path: str) -> nn.Module:
        """A module of the saved class: the one in place, a copy of another, or a new one of torch.nn."""
        if "same_as" in node:
            return self.built[node["same_as"]]
        if old is not None and _name(type(old)) == node["class"]:
            m = self.copy(old) if id(old) in self.used else old
        else:
            m = self.template(node, path)
        self.fill(m, node, path)
        return m

    def copy(self, m: nn.Module) -> nn.Module:
        """A deep copy; hooks that are methods of the model stay so, else the whole model would be copied."""
        return copy.deepcopy(m, {id(self.root): self.root})

    def template(self, node: dict, path: str) -> nn.Module:
        twin = self.built.get(node["copy_of"]) or self.fresh.get(node["copy_of"])
        twin = twin if _name(type(twin)) == node["class"] else None
        cls = getattr(nn, node["class"].rpartition(".")[2], None)
        if twin is None and inspect.isclass(cls) and issubclass(cls, nn.Module) and _name(cls) == node["class"]:
            m = cls.__new__(cls)  # without its constructor: the state contains all it would set
            nn.Module.__init__(m)
            return m
        for m in [twin, *self.fresh.values()]:
            if m is not self.root and _name(type(m)) == node["class"]:
                m = self.copy(m)
                for part in m.modules():  # tensors come from the state, in their own shapes
                    part._parameters.clear()
                    part._buffers.clear()
                return m
        raise UserError(
            f"{path or 'the model'} was a {node['class']} in the checkpoint and is missing here; create it in the "
            "constructor, or use the backbone and flags of the saved run"
        )

    def unpack(self, packed: Any, old: Any, path: str) -> Any:
        kind, content = packed
        if kind in {"list", "tuple"}:
            olds = list(old) if isinstance(old, (list, tuple)) else []
            pairs = itertools.zip_longest(content, olds[: len(content)])
            items = [self.unpack(p, o, f"{path}.{i}") for i, (p, o) in enumerate(pairs)]
            return items if kind == "list" else tuple(items)
        if kind == "dict":
            named = old if isinstance(old, dict) else {}
            return {k: self.unpack(p, named.get(k), f"{path}.{k}") for k, p in content.items()}
        state_names.check_kind(kind, path)
        return getattr(self, f"_{kind}")(content, old, path)

    def _plain(self, value: Any, old: Any, path: str) -> Any:
        return value

    def _leaf(self, saved: Any, old: Any, path: str) -> Any:
        if (
            isinstance(old, torch.Tensor)
            and old.requires_grad
            and old.shape == saved.shape
            and old.dtype == saved.dtype
        ):
            old.data.copy_(saved.data)
            return old
        return saved

    def _module_at(self, place: str, old: Any, path: str) -> nn.Module:
        return state_names.submodule(self.root, place)

    def _tensor_at(self, place: str, old: Any, path: str) -> torch.Tensor:
        return state_names.tensor(self.root, place)

    def _module(self, node: Any, old: Any, path: str) -> Any:
        return self.build(node, old if isinstance(old, nn.Module) else None, path)

    def _code(self, name: Any, old: Any, path: str) -> Any:
        if not (inspect.isclass(old) or inspect.isroutine(old)) or f"{old.__module__}.{old.__qualname__}" != name:
            raise UserError(f"{path} was {name} in the checkpoint and is {old!r} here; set it in the constructor")
        return old

    def _object(self, content: Any, old: Any, path: str) -> Any:
        name, load, state = content
        if _name(type(old)) != name or (state_names.loader_of(type(old)) or " ")[-1] != load:
            raise UserError(f"{path} was a {name} in the checkpoint and is {old!r} here; create it in the constructor")
        state_names.take_state(old, state)
        return old

    def _optimizer(self, content: Any, old: Any, path: str) -> Any:
        """The existing optimizer if it has the same parameters, else a new one over those named in the state."""
        try:
            wanted = [[None if n is None else self._tensor_at(n, None, path) for n in g] for g in content["params"]]
        except (LookupError, AttributeError) as error:
            raise UserError(f"{path} lacks a parameter ({error}); use the flags of the saved run") from None
        same = isinstance(old, Optimizer) and _name(type(old)) == content["class"]
        ours = [group["params"] for group in old.param_groups] if same else []
        fits = [len(g) for g in ours] == [len(g) for g in wanted] and all(
            q is None or p is q for g, h in zip(ours, wanted, strict=True) for p, q in zip(g, h, strict=True)
        )
        if not fits:
            cls = type(old) if same else state_names.optimizer_class(torch.optim, content["class"])
            if cls is None or any(p is None for g in wanted for p in g):
                raise UserError(f"{path} ({content['class']}) cannot be rebuilt; create it in the constructor")
            old = cls([{"params": group} for group in wanted], lr=content["state"]["param_groups"][0]["lr"])
        old.load_state_dict(content["state"])
        old.defaults.update(content["defaults"])
        return old

    def _scheduler(self, content: Any, old: Any, path: str) -> Any:
        if _name(type(old)) != content["class"]:
            cls = state_names.scheduler_class(content["class"])
            inner = {"_schedulers", "lr_lambdas", "lr_lambda"} & set(content["state"])
            if cls is None or inner or content["optimizer"] is None:
                raise UserError(f"{path} ({content['class']}) cannot be rebuilt; create it in the constructor")
            old = cls.__new__(cls)
        if content["optimizer"] is not None:
            old.optimizer = vars(self.root)[content["optimizer"]]
        state_names.load_scheduler(old, content["state"], path)
        return old

    def _torch_generator(self, content: Any, old: Any, path: str) -> Any:
        generator = old if isinstance(old, torch.Generator) else torch.Generator(content[0])
        return generator.set_state(content[1])

    def _numpy_generator(self, state: Any, old: Any, path: str) -> Any:
        if not isinstance(old, np.random.Generator) or type(old.bit_generator).__name__ != state["bit_generator"]:
            kinds = {"PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"}
            if state["bit_generator"] not in kinds:
                raise UserError(f"{path} was a generator {state['bit_generator']}; create it in the constructor")
            old = np.random.Generator(getattr(np.random, state["bit_generator"])())
        old.bit_generator.state = state
        return old

    def _numpy_state(self, state: Any, old: Any, path: str) -> Any:
        old = old if isinstance(old, np.random.RandomState) else np.random.RandomState()
        old.set_state(state)
        return old

    def _python_random(self, state: Any, old: Any, path: str) -> Any:
        old = old if isinstance(old, random.Random) else random.Random()
        old.setstate(state)
        return old
