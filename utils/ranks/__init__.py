"""Several processes (ranks) share one run: torchrun --nproc_per_node N main.py ... --distributed ddp.

Every rank runs the whole program, so counters, memories, random states and optimizers are equal on all ranks by
construction, and a method file needs no change. Dealt is the work inside networks: a call on a batch runs on this
rank's rows, and the outputs of all ranks are gathered. So a loss sees the whole batch, whatever it does with it.

    values      outside of a dealt call every tensor is equal on all ranks
    gradients   of a tensor outside of a dealt call may differ by rank, and their mean is the gradient
    parameters  `backward` and `autograd.grad` return that mean, where a dealt call is in the graph
"""

from utils.ranks.deal import (
    alone,
    by_size,
    deal_calls,
    dealing,
    dealt,
    draw,
    gathered,
    here,
    share,
    sum_of_rows,
    summed,
    whole,
)
from utils.ranks.group import (
    agree,
    barrier,
    bits,
    bytes_per_step,
    compare,
    everyone,
    from_first,
    rank,
    sent,
    size,
    union,
)
from utils.ranks.join import joined

__all__ = [
    "agree",
    "alone",
    "barrier",
    "bits",
    "by_size",
    "bytes_per_step",
    "compare",
    "deal_calls",
    "dealing",
    "dealt",
    "draw",
    "everyone",
    "from_first",
    "gathered",
    "here",
    "joined",
    "rank",
    "sent",
    "share",
    "size",
    "sum_of_rows",
    "summed",
    "union",
    "whole",
]
