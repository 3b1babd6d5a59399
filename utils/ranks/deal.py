"""Dealt calls: each rank computes its rows of a batch, and all ranks get the rows of all."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from utils.errors import UserError
from utils.pair import Pair
from utils.ranks.group import Group, gather, group, rank, reduce, size


def bounds(n: int, part: int, parts: int) -> tuple[int, int]:
    """First and one-past-last row of a part of n rows."""
    return n * part // parts, n * (part + 1) // parts


def counts(n: int) -> list[int]:
    """Rows of each rank."""
    ends = [bounds(n, r, size()) for r in range(size())]
    return [end - start for start, end in ends]


def mine(n: int) -> slice:
    """The rows of this rank among n."""
    return slice(*bounds(n, rank(), size()))


def share(rows: Any) -> Any:
    """This rank's part of an array, a tensor or a list; all of it in a run of one."""
    return rows[mine(len(rows))]


def by_size(sizes: list[int]) -> list[list[int]]:
    """Numbers of jobs for each rank, ascending; the largest job left goes to the rank with the least work."""
    parts: list[list[int]] = [[] for _ in range(size())]
    for job in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        min(parts, key=lambda part: (sum(sizes[i] for i in part), len(part))).append(job)
    return [sorted(part) for part in parts]


def dealer(n: int) -> Group | None:
    """The group that deals a call on n rows; None where every rank computes all of them."""
    me = group()
    if me is None or me.size < 2 or not me.open or n < me.size or torch._C._are_functorch_transforms_active():
        return None
    return me


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Inside, every rank computes all rows: for code that looks into the layers of a network."""
    me = group()
    before = me.open if me else True
    try:
        if me:
            me.open = False
        yield
    finally:
        if me:
            me.open = before


alone = whole  # the same for work that this rank does for all: nothing inside waits for the others


class GatherRows(torch.autograd.Function):
    """Own rows -> the rows of all ranks."""

    @staticmethod
    def forward(ctx, own: torch.Tensor, n: int) -> torch.Tensor:
        ctx.n = n
        return gather(own.contiguous(), counts(n))

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        return CollectRows.apply(gradient), None


class CollectRows(torch.autograd.Function):
    """The sum over ranks of this rank's rows: what flows back through `GatherRows`."""

    @staticmethod
    def forward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        ctx.n = len(gradient)
        return reduce(gradient.contiguous().clone())[mine(ctx.n)]

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return GatherRows.apply(gradient, ctx.n)


def mapped(value: Any, each: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`each` applied to all tensors in pairs, tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        return each(value)
    if isinstance(value, Pair):
        return Pair(each(value.image), each(value.text))
    if getattr(value, "SHARED", False):  # tensors without a row for each sample
        return value
    if isinstance(value, dict):
        return {key: mapped(inner, each) for key, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(inner, each) for inner in value))
    return type(value)(mapped(inner, each) for inner in value) if isinstance(value, (tuple, list)) else value


def own_rows(value: Any, n: int) -> Any:
    """This rank's rows of every tensor in `value`."""
    return mapped(value, lambda tensor: tensor[mine(n)])


def all_rows(value: Any, n: int, name: str) -> Any:
    """The rows of all ranks, of every tensor in the answer to a dealt call, with gradient."""
    own = counts(n)[rank()]

    def each(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 0 or len(tensor) != own:
            raise UserError(
                f"{name} answers {own} samples with a tensor of shape {tuple(tensor.shape)}, which cannot be gathered "
                "from several ranks: run it without --distributed"
            )
        return GatherRows.apply(tensor, n) if tensor.is_floating_point() else gather(tensor.contiguous(), counts(n))

    return mapped(value, each)


def gathered(value: Any, n: int) -> Any:
    """The rows of all ranks of what `share` of n rows gave, without gradient."""
    return value if size() == 1 else mapped(value, lambda tensor: gather(tensor.contiguous(), counts(n)))


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum over ranks, in place."""
    return values if size() == 1 else reduce(values)


def random_states() -> list[torch.Tensor]:
    """The states of torch's generators, which a network must leave alone."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])]


def sum_of_rows(values: torch.Tensor) -> torch.Tensor:
    """Inside a dealt call, the sum over all ranks of what each has summed over its rows, in place."""
    return reduce(values) if dealing() else values


def dealing() -> bool:
    """Whether a dealt call runs."""
    me = group()
    return me is not None and me.dealing > 0


def here(value: Any) -> Any:
    """Inside a dealt call, this rank's rows of a tensor with the rows of all; anything else as it is."""
    return own_rows(value, len(value)) if dealing() and isinstance(value, torch.Tensor) else value


def draw(fill: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """fill(empty tensor like `like`), random numbers with the samples in `dim`. Inside a dealt call they are drawn for
    the rows of all ranks, so that these stay in step, and this rank gets its own."""
    me = group()
    if me is None or not me.dealing:
        return fill(torch.empty_like(like))
    shape = [*like.shape[:dim], me.dealing, *like.shape[dim + 1 :]]
    order, steps = list(range(like.dim())), [like.stride(d) for d in range(like.dim()) if like.shape[d] > 1]
    if 0 not in steps and steps != sorted(steps, reverse=True):
        order.sort(key=lambda d: -like.stride(d))  # numbers are drawn in the order of memory
    back = [order.index(d) for d in range(like.dim())]
    values = fill(like.new_empty([shape[d] for d in order]).permute(back))
    me.random = random_states()
    own = mine(me.dealing)
    return values.narrow(dim, own.start, own.stop - own.start)


class Dealing:
    """One dealt call: closes the group while it runs, and checks that it drew no random numbers."""

    def __init__(self, me: Group, n: int, name: str):
        self.me, self.n, self.name = me, n, name
        me.open, me.dealing, me.random = False, n, random_states()

    def end(self, answer: Any, failed: bool = False) -> Any:
        self.me.open, self.me.dealing = True, 0
        if failed:
            return answer
        if not all(map(torch.equal, self.me.random, random_states())):
            raise UserError(
                f"{self.name} draws random numbers, such as dropout, which would be equal for the rows of each rank: "
                "set its rate to 0, or run it without --distributed"
            )
        return all_rows(answer, self.n, self.name)


def dealt(*names: str) -> Callable[[Callable], Callable]:
    """Decorator of a function that treats samples independently; `names` are its arguments with a row for each (the
    first is never None), and so is every tensor in its answer."""

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            if group() is None:
                return function(*args, **named)
            bound = signature.bind(*args, **named)
            n = len(rows_of(bound.arguments[names[0]]))
            me = dealer(n)
            if me is None:
                return function(*args, **named)
            for name in names:
                if name in bound.arguments:
                    bound.arguments[name] = own_rows(bound.arguments[name], n)
            dealing = Dealing(me, n, function.__qualname__)
            try:
                answer = function(*bound.args, **bound.kwargs)
            except BaseException:
                dealing.end(None, failed=True)
                raise
            return dealing.end(answer)

        call.is_dealt = True  # type: ignore[attr-defined]
        return call

    return decorate


def rows_of(value: Any) -> Any:
    """What has a row for each sample, of a tensor, a Pair or a tuple of tensors."""
    return value[0] if isinstance(value, tuple) else getattr(value, "image", value)


_running: list[Dealing | None] = []  # calls of networks, the innermost last


def enter(module: nn.Module, args: tuple) -> tuple | None:
    """Before a network is called: keep this rank's rows of its first argument."""
    first = rows_of(args[0]) if args else None
    tensors: list[torch.Tensor] = []
    mapped(args[1:], lambda tensor: tensors.append(tensor) or tensor)
    fits = isinstance(first, torch.Tensor) and first.dim() > 0 and not tensors
    me = dealer(len(first)) if fits else None
    _running.append(Dealing(me, len(first), type(module).__name__) if me else None)
    return (own_rows(args[0], len(first)), *args[1:]) if me else None


def leave(module: nn.Module, args: tuple, answer: Any) -> Any:
    """After it: the rows of all ranks. `answer` is None if the call has failed."""
    dealing = _running.pop()
    return None if dealing is None else dealing.end(answer, failed=answer is None)


def deal_calls(net: nn.Module) -> None:
    """Deal every call of a network whose first argument is the batch, and of its copies."""
    if size() < 2 or enter in net._forward_pre_hooks.values() or getattr(type(net).forward, "is_dealt", False):
        return
    net.register_forward_pre_hook(enter)
    net.register_forward_hook(leave, always_call=True)
