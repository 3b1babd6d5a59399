"""The group of ranks: what its ranks tell each other, and what happens if one is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from utils.errors import RanksLost, UserError

TIMEOUT_S = 600.0  # that a rank waits for the others, where --rank_timeout does not say


@dataclass
class Group:
    """This process among the ranks."""

    rank: int
    size: int
    timeout: float = TIMEOUT_S
    sent: dict[str, int] = field(default_factory=lambda: {"gradients": 0, "steps": 0})
    open: bool = True  # False inside of `alone` and `whole`, and of a dealt call
    dealing: int = 0  # inside of a dealt call, the rows of all ranks
    random: list[torch.Tensor] = field(default_factory=list)  # states of the generators when it began


_joined: list[Group] = []  # the group of this process; empty in a run of one


def group() -> Group | None:
    return _joined[-1] if _joined else None


def rank() -> int:
    """The number of this process; 0 in a run of one."""
    return _joined[-1].rank if _joined else 0


def size() -> int:
    """The number of ranks."""
    return _joined[-1].size if _joined else 1


def sent() -> dict[str, int]:
    """Bytes of averaged gradients so far, and how many times they were averaged."""
    return dict(_joined[-1].sent) if _joined else {}


def bytes_per_step() -> float:
    """Bytes of gradients in an average over ranks, 0 in a run of one."""
    now = sent()
    return now["gradients"] / max(1, now["steps"]) if now else 0.0


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of a module has another value inside."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def telling(place: str) -> Iterator[None]:
    """An error of torch.distributed inside means that another rank is gone, or late."""
    try:
        yield
    except RuntimeError as error:  # of gloo, NCCL and the store
        me, words = group(), " ".join(str(error).split())
        late = "timed out" in words.lower() or "timeout" in words.lower()
        waited = f"did not answer for {me.timeout:g} s (--rank_timeout)" if me and late else "has ended"
        raise RanksLost(f"another rank {waited}, noticed {place} ({words[:100]})") from None


def reduce(values: torch.Tensor, op: Any = dist.ReduceOp.SUM) -> torch.Tensor:
    """The sum (or another reduction) over ranks, in place."""
    with telling("while numbers were added up"):
        dist.all_reduce(values, op)
    return values


def gather(values: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Rows of all ranks one after another; rank r has counts[r] of them."""
    if values.dtype == torch.bool:
        return gather(values.byte(), counts).bool()
    if len(values) < max(counts):
        values = torch.cat([values, values.new_zeros(max(counts) - len(values), *values.shape[1:])])
    parts = [torch.empty_like(values) for _ in counts]
    with telling("while rows were gathered"):
        dist.all_gather(parts, values)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def agree(number: int) -> int:
    """The largest of the ranks' numbers."""
    return int(reduce(torch.tensor(number), dist.ReduceOp.MAX)) if size() > 1 else number


def differ(number: int) -> bool:
    """Whether the ranks' numbers are not all equal."""
    top = reduce(torch.tensor([number, -number]), dist.ReduceOp.MAX)
    return int(top[0]) != -int(top[1])


def barrier() -> None:
    """Wait for all ranks."""
    agree(0)


def everyone(value: Any) -> list:
    """The values of all ranks, in their order."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    with telling("while facts were compared"):
        dist.all_gather_object(found, value)
    return found


def from_first(make: Callable[[], Any]) -> Any:
    """What rank 0 makes."""
    return everyone(make() if rank() == 0 else None)[0]


def union(rows: np.ndarray) -> np.ndarray:
    """Distinct row numbers that any rank has, ascending."""
    return rows if size() == 1 else np.unique(np.concatenate(everyone(rows)))


def compare(facts: dict[str, Any], remedy: str) -> None:
    """Refuse to continue if a fact differs between ranks."""
    found = everyone(facts)
    wrong = {name: r for r, other in enumerate(found) for name in facts if other.get(name) != found[0][name]}
    if wrong:
        told = ", ".join(f"{name} (rank {r})" for name, r in wrong.items())
        raise UserError(f"ranks disagree with rank 0 about {told}: {remedy}")


def bits(state: dict[str, Any]) -> int:
    """A checksum of tensors, 0 in a run of one: for whether ranks are still equal bit for bit."""
    if size() == 1:
        return 0
    total = 0
    for value in state.values():
        if isinstance(value, torch.Tensor) and value.numel():
            words = value.detach().contiguous().view(-1)
            kind = {8: torch.int64, 4: torch.int32, 2: torch.int16}.get(words.element_size(), torch.uint8)
            total = total * 31 + int(words.view(kind).sum(dtype=torch.int64))
    return total % 2**61
