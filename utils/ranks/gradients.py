"""Gradients as means over ranks: `backward` and `autograd.grad` end with one flat bucket, where a call was dealt."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from utils.errors import UserError
from utils.ranks.deal import CollectRows, GatherRows
from utils.ranks.group import differ, group, reduce, replaced

DEALT = {f"{function.__name__}Backward" for function in (GatherRows, CollectRows)}


def dealt_leaves(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
    """The leaves of a graph that contains a dealt call, in an order that is equal on all ranks; else None."""
    stack = [t.grad_fn for t in outputs if t.grad_fn is not None]
    known, leaves, found = set(stack), [], False
    while stack:
        node = stack.pop()
        found = found or node.name() in DEALT
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        for inner, _ in node.next_functions:
            if inner is not None and inner not in known:
                known.add(inner)
                stack.append(inner)
    return leaves if found else None


class Mean(torch.autograd.Function):
    """The mean over ranks; the gradients of what follows are means as well, so this passes them on."""

    @staticmethod
    def forward(ctx, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(means(values))

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return gradients


def means(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The means over ranks, in one collective for each kind of number."""
    me, done = group(), list(values)
    for kind in dict.fromkeys((v.dtype, v.device) for v in values):
        places = [i for i, v in enumerate(values) if (v.dtype, v.device) == kind]
        flat = reduce(torch.cat([values[i].reshape(-1) for i in places])).div_(me.size)
        me.sent["gradients"] += flat.numel() * flat.element_size()
        for i, part in zip(places, flat.split([values[i].numel() for i in places]), strict=True):
            done[i] = part.view_as(values[i])
    me.sent["steps"] += 1
    return done


@torch.no_grad()
def average(leaves: list[torch.Tensor]) -> None:
    """Gradients of leaves, with the same set of them on all ranks: one that a rank does not have is zero."""
    if differ(hash(tuple(tuple(leaf.shape) for leaf in leaves)) % 2**62):
        raise UserError(
            "a loss does not reach the same parameters on all ranks, since the network's path depends on its samples: "
            "run it without --distributed"
        )
    reached = torch.tensor([leaf.grad is not None for leaf in leaves], dtype=torch.uint8)
    leaves = [leaf for leaf, any_rank in zip(leaves, reduce(reached).tolist(), strict=True) if any_rank]
    local = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    for leaf, mean in zip(leaves, means(local), strict=True):
        leaf.grad = mean


@contextlib.contextmanager
def averaged_gradients() -> Iterator[None]:
    """Inside, torch's two ways to gradients average them over ranks."""
    backward, grad = torch.autograd.backward, torch.autograd.grad

    def listed(tensors: Any) -> list[torch.Tensor]:
        return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)

    def backward_over_ranks(tensors: Any, *args: Any, inputs: Any = None, **named: Any) -> None:
        leaves = dealt_leaves(listed(tensors))
        backward(tensors, *args, inputs=inputs, **named)
        if leaves is not None:
            average(leaves if inputs is None else listed(inputs))

    def grad_over_ranks(outputs: Any, inputs: Any, *args: Any, **named: Any) -> tuple:
        dealt = dealt_leaves(listed(outputs)) is not None
        found = grad(outputs, inputs, *args, **named)
        if not dealt:
            return found
        there = [i for i, g in enumerate(found) if g is not None]
        averaged = dict(zip(there, Mean.apply(*(found[i] for i in there)), strict=True)) if there else {}
        return tuple(averaged.get(i) for i in range(len(found)))

    with (
        replaced(torch.autograd, "backward", backward_over_ranks),
        replaced(torch.autograd, "grad", grad_over_ranks),
    ):
        yield
