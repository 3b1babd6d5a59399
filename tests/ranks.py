"""Ranks in forked processes of one machine, and runs of methods in float64 on one and on two of them."""

import contextlib
import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
from torch import distributed as dist

from backbone import clip, clip_files
from tests import contract
from tests.toy_clip import toy_clip
from utils import features, ranks
from utils.errors import UserError
from utils.ranks.group import Group
from utils.ranks.join import member


def _rank(number: int, size: int, meeting: str, answers, work: Callable) -> None:
    try:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group(
            "gloo", f"file://{meeting}", rank=number, world_size=size, timeout=timedelta(seconds=120)
        )
        answers.put((number, pickle.dumps(work(Group(number, size))), None))  # by value: this process ends
    except BaseException:
        answers.put((number, None, traceback.format_exc()))


def on_ranks(size: int, work: Callable) -> list:
    """`work(group)` in forked processes, one for each rank; their answers."""
    fork, found = multiprocessing.get_context("fork"), {}
    answers = fork.Queue()
    with tempfile.TemporaryDirectory(prefix="ranks_") as folder:
        started = [
            fork.Process(target=_rank, args=(r, size, str(Path(folder) / "meeting"), answers, work))
            for r in range(size)
        ]
        for process in started:
            process.start()
        try:
            for _ in started:
                number, answer, error = answers.get(timeout=3600)
                if error:
                    raise AssertionError(f"rank {number}: {error}")
                found[number] = pickle.loads(answer)
        finally:
            for process in started:
                process.join(0 if len(found) < size else 60)
                if process.is_alive():
                    process.terminate()
    return [found[r] for r in range(size)]


@contextlib.contextmanager
def doubles() -> Iterator[None]:
    """Everything that is computed in float32 is computed in float64: for comparisons closer than its rounding."""
    single, read, before = torch.float32, clip_files.read_safetensors, torch.get_default_dtype()

    def read_single(*args):
        with mock.patch.object(torch, "float32", single):  # safetensors asks torch for the type of a file's tensors
            return read(*args)

    torch.set_default_dtype(torch.float64)
    with (
        mock.patch.object(torch, "float32", torch.float64),
        mock.patch.object(torch, "float", torch.float64),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        mock.patch.object(features, "FULL", "<f8"),
        mock.patch.object(clip_files, "read_safetensors", read_single),
        mock.patch.dict(clip.DTYPES, {"fp32": torch.float64}),
    ):
        yield
    torch.set_default_dtype(before)


def run_of(name: str, group: Group | None = None, **flags) -> dict:
    """A toy run of a method, on this process alone or as one of a group: its state by name, and its losses."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(doubles())
        stack.enter_context(contract.toys())
        if group is not None:
            stack.enter_context(member(Group(group.rank, group.size)))
        toy = contract.run(name, features="ram", **flags)
        state = {
            key: value.detach().clone()
            for key, value in toy.model.state_dict().items()
            if isinstance(value, torch.Tensor)
        }
        state["logits"] = contract.logits(toy)
        state["losses"] = torch.tensor(toy.losses)
        return {"state": state, "sent": ranks.sent()}


def distance(a: dict, b: dict) -> float:
    """The largest difference between two states, inf where their names or shapes differ."""
    if a.keys() != b.keys() or any(a[k].shape != b[k].shape for k in a):
        return float("inf")
    far = [(a[k].double() - b[k].double()).abs().max() for k in a if a[k].numel()]
    return float(torch.stack([torch.nan_to_num(f, 0.0) for f in far]).max()) if far else 0.0


ILL_POSED = {
    "bofa": "its directions are cut out of a null space, of which every basis is right",
    "slda": "its shared covariance is singular here, and the pseudo-inverse amplifies rounding",
}


def flags_of(name: str) -> dict:
    """Two tasks of one pass with SGD, as far as the method has the flags: ten steps."""
    flags = {"stop_after": 1, "n_epochs": 1, "optimizer": "sgd"}
    idle = set(contract.model_class(name).IDLE_FLAGS)
    if contract.settings_of(name)[0] == "general-continual":
        idle.add("stop_after")
    return {flag: value for flag, value in flags.items() if flag not in idle}


@dataclass
class Verdict:
    """A method on one rank and on all: how far apart they end, and the bytes of an average of gradients."""

    far: float = 0.0  # from one rank
    apart: float = 0.0  # between ranks
    sent: int = 0
    error: str = ""


def law(names: list[str], watch: Callable[[str, Verdict], None] | None = None) -> Callable[[Group], dict]:
    """Work of a rank: each method with the small CLIP on one rank and on all; `watch` is called on rank 0."""

    def verdict(group: Group, name: str) -> Verdict:
        one = run_of(name, None, **flags_of(name)) if group.rank == 0 else None
        try:
            two = run_of(name, group, **flags_of(name))
        except (UserError, RuntimeError) as error:
            two = {"error": str(error)}
        found: list = [None] * group.size
        dist.all_gather_object(found, two)
        told = " ".join(answer["error"] for answer in found if "error" in answer)
        if told or one is None:
            return Verdict(error=told)
        far, apart = distance(one["state"], two["state"]), max(distance(two["state"], r["state"]) for r in found)
        return Verdict(far, apart, two["sent"]["gradients"] // max(1, two["sent"]["steps"]))

    def work(group: Group) -> dict[str, Verdict]:
        found = {}
        for name in names:
            found[name] = verdict(group, name)
            if watch and group.rank == 0:
                watch(name, found[name])
        return found

    return work


def under_the_law(names: list[str], watch: Callable | None = None) -> dict[str, Verdict]:
    """The verdicts of rank 0."""
    contract.feature_folder()
    with contract.toys(), mock.patch.object(contract, "usual_clip", toy_clip):
        toy_clip()
        return on_ranks(2, law(names, watch))[0]
