"""Random numbers by key: every part of the key matters, and no other state changes."""

import random

import numpy as np
import torch

from utils.randomness import generator, key_seed, seeded, set_random_seed


def global_draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeds_are_functions_of_the_whole_key():
    keys = [(1, "a", 2), (1, "a", 3), (2, "a", 2), (1, "b", 2), (1, 2, "a"), (1,), (12,), (1, 2), ("a", 11), ("a1", 1)]
    assert len({key_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= key_seed(*key) < 2**63 for key in keys) and key_seed(1, "a") == key_seed(1, "a")
    a, b = (torch.rand(4, generator=generator("x", 7)) for _ in range(2))
    assert torch.equal(a, b)


def test_a_seeded_block_leaves_the_global_states_alone():
    set_random_seed(3)
    wanted = global_draws()
    set_random_seed(3)
    inside = []
    for key in ("k", "k", "other"):
        with seeded("block", key):
            inside.append(global_draws())
    assert global_draws() == wanted
    assert inside[0] == inside[1] and all(a != b for a, b in zip(inside[0], inside[2], strict=True))


def test_one_seed_fixes_every_global_stream():
    draws = []
    for seed in (5, 5, 6):
        set_random_seed(seed)
        draws.append(global_draws())
    assert draws[0] == draws[1] and all(a != b for a, b in zip(draws[0], draws[2], strict=True))
