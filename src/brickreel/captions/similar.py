"""Captions that say nearly the same, found without comparing every pair.

Word triples are hashed into MinHash signatures (Broder, 1997); signatures that agree in a band are candidates (locality
sensitive hashing; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3), and candidates are compared.
"""

import re
import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

ALIKE = 0.8
"""Jaccard similarity of the word triples from which two captions count as nearly the same."""
_BANDS, _ROWS = 16, 4  # a pair of similarity 0.8 becomes a candidate with a chance of 1 - (1 - 0.8^4)^16 = 99.98 %
_PRIME = (1 << 31) - 1


def groups(texts: Sequence[str]) -> list[list[int]]:
    """Groups of at least two positions in `texts` whose captions are nearly the same, the largest first.

    A group is what similarity connects: each member is like at least one other.
    """
    distinct: dict[str, list[int]] = defaultdict(list)
    for position, text in enumerate(texts):
        distinct[" ".join(_words(text))].append(position)
    keys = list(distinct)
    parent = list(range(len(keys)))
    triples = [_triples(key) for key in keys]
    for one, other in _candidates(triples):
        if len(triples[one] & triples[other]) >= ALIKE * len(triples[one] | triples[other]):
            parent[_root(parent, one)] = _root(parent, other)
    joined: dict[int, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        joined[_root(parent, number)] += distinct[key]
    found = [sorted(group) for group in joined.values() if len(group) > 1]
    return sorted(found, key=lambda group: (-len(group), group))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _triples(text: str) -> frozenset[int]:
    words = text.split()
    return frozenset(zlib.crc32(" ".join(words[i : i + 3]).encode()) for i in range(max(1, len(words) - 2)))


def _candidates(triples: Sequence[frozenset[int]]) -> set[tuple[int, int]]:
    generator = np.random.default_rng(0)
    factors, shifts = generator.integers(1, _PRIME, (2, _BANDS * _ROWS, 1), dtype=np.int64)
    bands: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for number, hashes in enumerate(triples):
        values = np.fromiter(hashes, np.int64, len(hashes)) % _PRIME
        # The products stay below 2^62.
        signature = ((factors * values + shifts) % _PRIME).min(axis=1).reshape(_BANDS, _ROWS)
        for band in range(_BANDS):
            bands[band, signature[band].tobytes()].append(number)
    # Each member with the first of its bucket: enough to connect what is alike, and linear in the bucket.
    return {(members[0], other) for members in bands.values() for other in members[1:]}


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number
