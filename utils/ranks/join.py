"""How this process joins the ranks of torchrun, and leaves them."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
from torch import distributed as dist

from utils.errors import UserError
from utils.ranks.gradients import averaged_gradients
from utils.ranks.group import TIMEOUT_S, Group, _joined, barrier, everyone, telling
from utils.ranks.norm import batch_norm_over_ranks
from utils.settings import option


@contextlib.contextmanager
def member(me: Group) -> Iterator[Group]:
    """Inside, this process is one of a group that torch.distributed has set up."""
    _joined.append(me)
    try:
        with averaged_gradients(), batch_norm_over_ranks():
            yield me
    finally:
        _joined.pop()


@contextlib.contextmanager
def joined(args: Namespace, first_is: Callable[[int], None]) -> Iterator[Group | None]:
    """With --distributed ddp: join the group that torchrun describes; ranks after the first print nothing. `first_is`
    is told the process number of rank 0, if it is on this machine."""
    if option(args, "distributed", "no") != "ddp":
        yield None
        return
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    timeout, gpu = option(args, "rank_timeout", TIMEOUT_S), choose_device(args)
    if count == int(os.environ.get("LOCAL_WORLD_SIZE", 0)) and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: its ranks need no network
    with telling(f"when the {count} ranks met"):
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=timedelta(seconds=timeout))
    try:
        with contextlib.ExitStack() as stack:
            if number:
                silence = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(silence))
                stack.enter_context(contextlib.redirect_stderr(silence))
            me = stack.enter_context(member(Group(number, count, timeout)))
            pid, host = everyone((os.getpid(), socket.gethostname()))[0]
            if host == socket.gethostname():
                first_is(pid)
            yield me
    finally:
        if sys.exc_info()[0] is None:
            barrier()  # nobody ends while another still waits for an answer
            dist.destroy_process_group()


def choose_device(args: Namespace) -> bool:
    """Give each rank of a machine its own GPU, if it has one; returns whether."""
    asked = str(option(args, "device", None) or ("cuda" if torch.cuda.is_available() else "cpu"))
    if asked == "cpu":
        args.device = "cpu"
        return False
    if asked != "cuda":
        raise UserError(f"--device {asked}: with --distributed ddp each rank has its own GPU; use cuda or cpu")
    own, found = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if own >= found:
        raise UserError(f"rank {own} of this machine has no GPU, there are {found}: lower --nproc_per_node")
    torch.cuda.set_device(own)
    args.device = f"cuda:{own}"
    return True
