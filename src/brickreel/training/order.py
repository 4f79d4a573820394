"""The order of the data as a pure function of (seed, epoch, dataset, plan).

Training shows an endless sequence of micro-batches. Micro-batch `i` can be computed without the ones before it and
without holding a permutation; a step takes the next `n` of them, on however many ranks. All that a checkpoint needs to
store is how many have been shown.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from brickreel.training.buckets import BucketPlan
from brickreel.training.permutation import permuted


class MicroBatch(NamedTuple):
    """Clips of one bucket that are shown together."""

    bucket: int
    """Place in the plan's list."""
    items: NDArray[np.int64]
    """Clips, by their place in the bucket."""
    occurrences: NDArray[np.int64]
    """Number of each showing, unique over all epochs: what its noise, timestep, mask and text dropout hang on."""


class Share(NamedTuple):
    """A micro-batch dealt to a rank. `weight` is 0 when it only keeps this rank in step with the others."""

    number: int
    weight: float


class Order:
    """The sequence of micro-batches of one plan under one seed."""

    def __init__(self, plan: BucketPlan, seed: int) -> None:
        self.plan, self.seed = plan, seed
        self.ends = np.cumsum([bucket.micro_batches for bucket in plan.buckets])
        self.slot_starts = np.cumsum([0] + [bucket.slots for bucket in plan.buckets])
        self.per_epoch = int(self.ends[-1])
        self.identity = f"{plan.fingerprint}/{_digest(plan)}/{seed}"
        self.without_buckets = f"{plan.fingerprint}/{seed}"
        """How older checkpoints name their order."""

    def micro_batch(self, index: int) -> MicroBatch:
        """The micro-batch with this number, from 0, over all epochs."""
        epoch, place, first, size = self._find(index)
        bucket = self.plan.buckets[place]
        name = f"{self.identity}/{epoch}/{bucket.name}"
        slots = permuted(np.arange(first, first + size), bucket.slots, name)
        occurrences = epoch * int(self.slot_starts[-1]) + int(self.slot_starts[place]) + slots
        return MicroBatch(place, slots % bucket.items, occurrences)

    def _find(self, index: int) -> tuple[int, int, int, int]:
        """Epoch, bucket, first slot and number of clips of a micro-batch."""
        epoch, position = divmod(index, self.per_epoch)
        drawn = int(permuted(np.array([position]), self.per_epoch, f"{self.identity}/{epoch}")[0])
        place = int(np.searchsorted(self.ends, drawn, side="right"))
        bucket = self.plan.buckets[place]
        first = (drawn - int(self.ends[place]) + bucket.micro_batches) * bucket.batch
        return epoch, place, first, min(bucket.batch, bucket.slots - first)

    def samples(self, first: int, count: int) -> int:
        """Clips in `count` micro-batches from `first` on."""
        return sum(self._find(index)[3] for index in range(first, first + count))


def _digest(plan: BucketPlan) -> str:
    """Of what the sequence depends on beside the dataset: more clips per micro-batch make another one."""
    told = [(row.name, row.items, row.batch, row.repeats, row.drop_last, row.sources) for row in plan.buckets]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=8).hexdigest()


def deal(first: int, count: int, rank: int, world_size: int) -> Sequence[Share]:
    """A rank's micro-batches of the step that shows `count` micro-batches from `first` on.

    Every rank gets the same number, since collectives need all ranks; what is missing is padded with weight 0.
    """
    rounds = -(-count // world_size)
    shares = []
    for turn in range(rounds):
        place = turn * world_size + rank
        shares.append(Share(first + place, 1.0) if place < count else Share(first + place % count, 0.0))
    return shares
