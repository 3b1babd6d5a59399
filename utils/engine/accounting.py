"""What a run costs: parameters, peak memory, seconds by phase."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Number of parameters that are trained now, and of all."""
    trained = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    return {"trainable": sum(trained.values()), "total": sum({id(p): p.numel() for p in model.parameters()}.values())}


def peak_bytes(device: torch.device) -> dict[str, int]:
    """Peak resident memory of this process, and of the GPU if one is used."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peaks["gpu"] = torch.cuda.max_memory_allocated(device)
    return peaks


class Stopwatch:
    """Seconds by named phase."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - start
