"""Random numbers as a pure function of (seed, index, field): any subset can be drawn in any order, on any machine."""

from __future__ import annotations

import zlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)


def _mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser: integer arithmetic modulo 2**64, so bit-exact everywhere."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_A
    x = (x ^ (x >> np.uint64(27))) * _MIX_B
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, index: np.ndarray, field: str) -> np.ndarray:
    """Numbers in [0, 1), one per entry of `index`; `field` names the use, so uses never share a number."""
    key = np.array([seed % 2**64, zlib.crc32(field.encode())], dtype=np.uint64)
    key = _mix(_mix(key[:1] + _GOLDEN) + key[1:] * _GOLDEN)
    bits = _mix(_mix(np.asarray(index).astype(np.uint64) * _GOLDEN + key) + key)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(seed: int, index: np.ndarray, field: str, n: int | np.ndarray) -> np.ndarray:
    """Integers in [0, n); `n` may differ per entry."""
    return np.minimum(np.floor(uniform(seed, index, field) * n).astype(np.int64), np.asarray(n) - 1)


def choice(seed: int, index: np.ndarray, field: str, weights: list[float] | np.ndarray) -> np.ndarray:
    """Index into `weights` with probability proportional to the weight."""
    edges = np.cumsum(np.asarray(weights, dtype=np.float64))
    return np.searchsorted(edges[:-1] / edges[-1], uniform(seed, index, field), side="right")


def permutation(seed: int, n: int, field: str) -> np.ndarray:
    """A shuffle of range(n)."""
    return np.argsort(uniform(seed, np.arange(n), field), kind="stable")
