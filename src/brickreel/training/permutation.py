"""A random permutation of n numbers that is computed, not stored.

A Feistel network over the next power of four, walked until it lands inside [0, n) (Black and Rogaway, "Ciphers with
Arbitrary Finite Domains", 2002): any position of any epoch costs the same and takes no memory.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def permuted(positions: NDArray[np.int64], size: int, key: str) -> NDArray[np.int64]:
    """Where each position in [0, size) goes, under the permutation that `key` names.

    Raises ValueError for a position outside.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if positions.size and not (positions.min() >= 0 and positions.max() < size):
        raise ValueError(f"positions must lie in [0, {size})")
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * ROUNDS).digest(), dtype="<u8")
    values = _encrypt(positions.astype(np.uint64), half, keys)
    while (outside := values >= size).any():
        values[outside] = _encrypt(values[outside], half, keys)
    return values.astype(np.int64)


def _encrypt(values: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014)."""
    first, second = _MULTIPLIERS
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * first
        values = (values ^ (values >> np.uint64(27))) * second
    return values ^ (values >> np.uint64(31))
