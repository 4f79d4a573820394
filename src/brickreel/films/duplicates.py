"""Near-duplicate clips of different films, by the perceptual hashes of their poses.

Locality-sensitive hashing by bit sampling (P. Indyk, R. Motwani, 1998): clips that share all bits of some band of the
512 hash bits are compared bit by bit. Sorting finds the bands' groups, so that a million clips take seconds.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]

# Bands: each takes SLICE neighbouring bits from SLICES hashes. With 12 % of the bits flipped a pair agrees in at least
# one of them with probability 0.95, with 6 % with 0.99999; two strangers meet once in a million per band.
BANDS, SLICES, SLICE = 44, 4, 5
# Clips that share a band are compared with this many of their neighbours there: a bound for the largest groups.
NEIGHBOURS = 12
# Lengths in poses of two clips that may be the same.
LENGTHS = 1.25


def pairs(hashes: Hashes, poses: Ints, films: Ints, bits: float) -> NDArray[np.int64]:
    """[P, 2] pairs (lower index first) of clips of different films that differ by at most `bits` of 64 per pose.

    `hashes` [C, S] are those of S poses spread evenly over each clip, `poses` [C] the lengths, `films` [C] the films.
    """
    count, samples = hashes.shape
    if count < 2:
        return np.zeros((0, 2), np.int64)
    generator = np.random.default_rng(0)
    # A random order, so that neighbours within a large group are not all of one film.
    order = generator.permutation(count)
    found = []
    for key in _keys(hashes[order], samples, generator):
        sorted_places = np.argsort(key, kind="stable")
        found.append(_meet(key[sorted_places], order[sorted_places], hashes, poses, films, bits))
    codes = np.unique(np.concatenate(found))
    return np.stack(np.divmod(codes, count), axis=1)


def _keys(hashes: Hashes, samples: int, generator: np.random.Generator) -> Iterator[NDArray[np.uint32]]:
    mask = np.uint64(2**SLICE - 1)
    for _ in range(BANDS):
        key = np.zeros(len(hashes), np.uint32)
        for sample in generator.choice(samples, SLICES, replace=samples < SLICES):
            shift = np.uint64(generator.integers(0, 64 - SLICE + 1))
            key = (key << np.uint32(SLICE)) | ((hashes[:, sample] >> shift) & mask).astype(np.uint32)
        yield key


def _meet(
    key: NDArray[np.uint32], clips: Ints, hashes: Hashes, poses: Ints, films: Ints, bits: float
) -> NDArray[np.int64]:
    """Codes first * C + second of the pairs that are near, among neighbours with equal keys."""
    codes = []
    for step in range(1, min(NEIGHBOURS, len(key) - 1) + 1):
        same = np.flatnonzero(key[step:] == key[:-step])
        if not len(same):
            break
        first, second = clips[same], clips[same + step]
        longer, shorter = np.maximum(poses[first], poses[second]), np.minimum(poses[first], poses[second])
        fit = (films[first] != films[second]) & (longer <= LENGTHS * shorter + 1)
        first, second = first[fit], second[fit]
        near = distance(hashes[first], hashes[second]) <= bits
        low, high = np.minimum(first[near], second[near]), np.maximum(first[near], second[near])
        codes.append(low * len(key) + high)
    return np.concatenate(codes) if codes else np.zeros(0, np.int64)


def distance(first: Hashes, second: Hashes) -> NDArray[np.float64]:
    """Mean number of differing bits per hash, between rows [N, S]."""
    return np.bitwise_count(first ^ second).mean(axis=1)


def originals(near: NDArray[np.int64], rank: Ints) -> dict[int, int]:
    """Clip -> the clip that is kept instead, from pairs. Of a group that of lowest `rank` [C] stays."""
    parent: dict[int, int] = {}

    def root(clip: int) -> int:
        while parent.get(clip, clip) != clip:
            parent[clip] = parent.get(parent[clip], parent[clip])
            clip = parent[clip]
        return clip

    for first, second in near.tolist():
        a, b = root(first), root(second)
        if a != b:
            keep, drop = (a, b) if rank[a] < rank[b] else (b, a)
            parent[drop] = keep
    return {clip: root(clip) for clip in parent if root(clip) != clip}
