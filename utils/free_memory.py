"""Memory that a size needs, estimated before anything is built, against the free memory of the machine."""

import os
from argparse import Namespace
from pathlib import Path

from utils.conf import of_run
from utils.errors import UserError

READERS_PER_CPU, FEW_READERS = 4, 8  # more would only wait for each other
MANY_FILES = 2000  # image files that are worth starting processes for


def machine_bytes() -> int:
    """Memory that is free on this machine or allowed by its control group, whichever is less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no control group, or "max"
        return free


def require(nbytes: int, what: str, remedy: str, device: str = "cpu") -> None:
    """Refuse what needs more than --max_memory_gb, by default the free memory of the machine or the GPU."""
    asked = of_run("max_memory_gb")
    if asked is None and str(device).startswith("cuda"):
        import torch

        limit, whose = torch.cuda.mem_get_info(device)[0], "free on the GPU"
    else:
        limit, whose = (
            (machine_bytes(), "free here") if asked is None else (int(asked * 2**30), "allowed by --max_memory_gb")
        )
    if nbytes > limit:
        raise UserError(
            f"{what} needs about {nbytes / 1e9:.1f} GB, but only {limit / 1e9:.1f} GB are {whose}: {remedy}"
        )


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def readers_for(n_files: int) -> int:
    """The default of --num_workers: one processor is left to training; few files are read sooner than processes
    start."""
    return min(FEW_READERS, processors() - 1) if n_files >= MANY_FILES else 0


def refuse_many_readers(args: Namespace) -> None:
    """Refuse --num_workers beyond what the CPUs can serve."""
    cpus = processors()
    most = max(FEW_READERS, READERS_PER_CPU * cpus)
    if args.num_workers > most:
        raise UserError(
            f"--num_workers {args.num_workers}: this machine has {cpus} processors, which {most} workers "
            "keep busy; use at most that many"
        )


def require_images(args: Namespace, dataset, backbone=None) -> None:
    """Require memory for a batch of training images, augmented and plain, and its activations for the gradient."""
    size = getattr(dataset, "SIZE", None)
    if not size:
        return
    pixels = int(size[0]) * int(size[-1])
    count = min(args.batch_size, dataset.count(True) or args.batch_size)
    floats = 2 * 3 + getattr(backbone, "floats_per_pixel", 0)
    require(
        4 * pixels * count * floats,
        f"a batch of {count} images of {size[0]} x {size[-1]}",
        "lower --batch_size or the size of the images",
        getattr(args, "device", "cpu"),
    )
