"""Which GPU a run gets: of those with the fewest of our runs, the one with the most free memory."""

import os
import shutil
import subprocess
from collections.abc import Sequence

from scripts.sweeps.grid import flags_of
from utils.errors import UserError

QUERY = ["nvidia-smi", "--query-gpu=index,memory.free", "--format=csv,noheader,nounits"]


def free_memory() -> dict[str, int]:
    """Index of each GPU -> free MiB; empty on a machine without any."""
    if shutil.which(QUERY[0]) is None:
        return {}
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    rows = [line.split(",") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return {row[0].strip(): int(row[1]) for row in rows if len(row) == 2 and row[1].strip().isdigit()}


class Gpus:
    def __init__(self, names: Sequence[str]):
        self.names = list(names)

    def deal(self, argv: Sequence[str], taken: Sequence[str | None]) -> str | None:
        """The GPU of the next run; None for a run whose flags name a device."""
        device = dict(flags_of(argv)).get("device", "cuda")
        if device != "cuda" or not self.names:
            return None
        free = free_memory()
        return min(self.names, key=lambda name: (list(taken).count(name), -free.get(name, 0), self.names.index(name)))


def chosen(given: str | None) -> Gpus:
    """--gpus, else those that CUDA_VISIBLE_DEVICES leaves, else all."""
    there = free_memory()
    if given is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return Gpus(list(there) if visible is None else [v.strip() for v in visible.split(",") if v.strip()])
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        raise UserError("--gpus needs the numbers of GPUs, for example 0,1")
    if missing := [name for name in names if name not in there]:
        have = f"there are {', '.join(there)}" if there else "nvidia-smi shows none"
        raise UserError(f"--gpus {given}: there is no GPU {missing[0]} here; {have}")
    return Gpus(names)
