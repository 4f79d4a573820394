"""Planted near-duplicates are found, and strangers are not."""

import numpy as np

from brickreel.films import duplicates


def planted(count, pairs, flips, seed=0):
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, (count, 8), dtype=np.uint64)
    originals = rng.choice(count // 2, pairs, replace=False)
    copies = count // 2 + np.arange(pairs)
    hashes[copies] = hashes[originals]
    for _ in range(flips):
        hashes[copies] ^= np.uint64(1) << rng.integers(0, 64, (pairs, 8), dtype=np.uint64)
    return hashes, {tuple(pair) for pair in zip(originals.tolist(), copies.tolist(), strict=True)}


def found(hashes, films=None, poses=None, bits=8.0):
    count = len(hashes)
    films = np.arange(count) if films is None else films
    poses = np.full(count, 40) if poses is None else poses
    return {tuple(pair) for pair in duplicates.pairs(hashes, poses, films, bits).tolist()}


def test_copies_with_flipped_bits_are_found_and_no_others():
    hashes, truth = planted(20_000, 400, flips=6)
    pairs = found(hashes)
    assert len(pairs & truth) >= 0.95 * len(truth)
    assert len(pairs & truth) >= 0.99 * len(pairs)


def test_clips_of_one_film_or_of_other_lengths_are_no_copies():
    hashes, truth = planted(200, 20, flips=0)
    assert found(hashes) == truth
    assert found(hashes, films=np.zeros(200, np.int64)) == set()
    poses = np.where(np.arange(200) < 100, 40, 80)
    assert found(hashes, poses=poses) == set()


def test_a_scene_in_every_film_leaves_one():
    hashes = np.repeat(np.random.default_rng(1).integers(0, 2**64, (1, 8), dtype=np.uint64), 30, axis=0)
    near = duplicates.pairs(hashes, np.full(30, 20), np.arange(30), 8.0)
    rank = np.arange(30)[::-1].copy()
    kept = duplicates.originals(near, rank)
    assert set(kept.values()) == {29}
    assert len(kept) == 29


def test_fewer_than_two_clips_have_no_pairs():
    assert found(np.zeros((1, 8), np.uint64)) == set()
