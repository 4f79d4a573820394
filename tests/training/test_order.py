import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brickreel.training.buckets import Bucket, BucketPlan
from brickreel.training.order import Order, deal
from brickreel.training.permutation import permuted


def plan(*buckets: Bucket) -> BucketPlan:
    return BucketPlan(buckets, "fingerprint", sum(bucket.items for bucket in buckets), 0)


MIXED = plan(Bucket("a", 32, 64, 64, 23, 4), Bucket("b", 16, 64, 64, 5, 8, repeats=2), Bucket("c", 1, 64, 64, 9, 3))


@given(size=st.integers(1, 3000), key=st.text(max_size=5))
@settings(max_examples=60, deadline=None)
def test_permutation_hits_every_number_once(size, key):
    assert sorted(permuted(np.arange(size), size, key)) == list(range(size))


def test_permutation_spreads_evenly():
    firsts = [int(permuted(np.array([0]), 10, str(key))[0]) for key in range(5000)]
    assert all(400 < count < 600 for count in Counter(firsts).values())


def test_permutation_refuses_positions_outside():
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        permuted(np.array([4]), 4, "")


def test_an_epoch_shows_every_slot_once_and_epochs_differ():
    order = Order(MIXED, seed=1)
    epochs = []
    for epoch in range(3):
        batches = [order.micro_batch(epoch * order.per_epoch + i) for i in range(order.per_epoch)]
        shown = Counter((batch.bucket, int(item)) for batch in batches for item in batch.items)
        assert shown == Counter(
            {(0, i): 1 for i in range(23)} | {(1, i): 2 for i in range(5)} | {(2, i): 1 for i in range(9)}
        )
        epochs.append([(batch.bucket, tuple(batch.items)) for batch in batches])
    assert epochs[0] != epochs[1] != epochs[2]


def test_occurrences_are_unique_over_epochs():
    order = Order(MIXED, seed=1)
    numbers = [n for i in range(4 * order.per_epoch) for n in order.micro_batch(i).occurrences]
    assert len(set(numbers)) == len(numbers) == 4 * MIXED.samples


def test_short_last_micro_batch_counts_as_it_is():
    order = Order(MIXED, seed=1)
    assert order.samples(0, order.per_epoch) == MIXED.samples == 23 + 10 + 9


def test_dropped_remainder_changes_from_epoch_to_epoch():
    order = Order(plan(Bucket("a", 32, 64, 64, 10, 4, drop_last=True)), seed=0)
    seen = set()
    for i in range(order.per_epoch * 12):
        batch = order.micro_batch(i)
        assert len(batch.items) == 4
        seen.update(batch.items.tolist())
    assert seen == set(range(10))


def test_seed_and_dataset_change_the_order():
    def first(seed: int, fingerprint: str) -> list[tuple[int, ...]]:
        order = Order(BucketPlan(MIXED.buckets, fingerprint, 1, 0), seed)
        return [tuple(order.micro_batch(i).items) for i in range(order.per_epoch)]

    assert first(1, "x") != first(2, "x")
    assert first(1, "x") != first(1, "y")
    assert first(1, "x") == first(1, "x")


@pytest.mark.parametrize(
    "change",
    [{"batch": 5}, {"items": 22}, {"repeats": 2}, {"drop_last": True}, {"sources": ("x",)}, {"name": "z"}],
)
def test_another_bucket_is_another_order(change):
    changed = plan(replace(MIXED.buckets[0], **change), *MIXED.buckets[1:])
    assert Order(changed, 1).identity != Order(MIXED, 1).identity
    assert Order(changed, 1).without_buckets == Order(MIXED, 1).without_buckets
    assert Order(BucketPlan.from_json(MIXED.to_json()), 1).identity == Order(MIXED, 1).identity


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7, 16])
def test_dealing_covers_a_step_exactly_once_on_any_number_of_ranks(world_size):
    shares = [deal(100, 6, rank, world_size) for rank in range(world_size)]
    assert len({len(row) for row in shares}) == 1
    counted = [share.number for row in shares for share in row if share.weight]
    assert sorted(counted) == list(range(100, 106))
    assert all(100 <= share.number < 106 for row in shares for share in row)


def test_a_hundred_million_samples_need_no_memory():
    script = """
import resource
from brickreel.training.buckets import Bucket, BucketPlan
from brickreel.training.order import Order
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
order = Order(BucketPlan((Bucket('a', 32, 360, 640, 100_000_000, 8),), 'x', 100_000_000, 0), 1)
batch = order.micro_batch(1000 * order.per_epoch)
assert len(batch.items) == 8 and batch.items.max() < 100_000_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    kib = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(kib) < 200 * 1024
