"""Generators of random numbers as plain values that a checkpoint can hold."""

import random
from typing import Any

import numpy as np
import torch


def random_state(value: Any) -> tuple[str, Any] | None:
    """(kind, content) of a generator of random numbers, or None."""
    if isinstance(value, torch.Generator):
        return "torch_generator", [str(value.device), value.get_state()]
    if isinstance(value, np.random.Generator):
        return "numpy_generator", value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return "numpy_state", value.get_state()
    if isinstance(value, random.Random):
        return "python_random", value.getstate()
    return None
