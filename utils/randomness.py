"""Random numbers as functions of (seed, task, epoch, index), not of earlier draws."""

import contextlib
import hashlib
import random

import numpy as np
import torch


def key_seed(*key) -> int:
    """A 63-bit seed from any printable key."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*key) -> torch.Generator:
    """A CPU generator for one purpose, named by its key."""
    return torch.Generator().manual_seed(key_seed(*key))


def set_random_seed(seed: int) -> None:
    """Seed Python's, numpy's and torch's global states."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def seeded(*key):
    """Run a block under its own global CPU random states, then restore the old ones."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = key_seed(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every kind of device, for each sample
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
