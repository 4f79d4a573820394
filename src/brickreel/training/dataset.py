"""Micro-batches of latents, read ahead by threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from brickreel.cluster import exits
from brickreel.config import RunData
from brickreel.training import latents
from brickreel.training.buckets import BucketPlan, fingerprint, rows_of, split_of
from brickreel.training.order import MicroBatch
from brickreel.training.randomness import Showing

Reader = Callable[[Mapping[str, Any], Showing], latents.Sample]


@dataclass
class Batch:
    """Clips of one shape. mean and logvar [B, C, T, h, w] bf16; text [B, 1, L, channels] bf16, padded with zeros."""

    ids: list[str]
    mean: Tensor
    logvar: Tensor
    text: Tensor
    lengths: tuple[int, ...]
    """Text tokens per sample."""
    showings: list[Showing]
    valid: Tensor
    """float [B]: 0 for a sample that could not be read, whose latents are zeros."""
    problems: list[str]
    frames: int
    height: int
    width: int
    """Pixels."""
    fps: list[float]
    scaling_factor: float
    passing: str = ""
    """One of the problems that is a file system's and not the sample's; empty when none is."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns."""
        return self.mean.shape[2], self.mean.shape[3], self.mean.shape[4]


class Dataset:
    """The training clips of a run, by bucket and place as the order names them.

    Raises ValueError when the plan was made from another dataset.
    """

    def __init__(
        self,
        index: pa.Table | Iterable[pa.RecordBatch],
        data: RunData,
        plan: BucketPlan,
        identity: str,
        channels: tuple[int, int],
        reader: Reader | None = None,
    ) -> None:
        rows = rows_of(index, data)
        self.train, self.heldout = split_of(rows, "train"), split_of(rows, "heldout")
        if fingerprint(self.train.rows) != plan.fingerprint:
            raise ValueError("the plan was made from another dataset: run the plan stage again")
        self.plan, self.identity, self.channels = plan, identity, channels
        self.buckets = [
            np.concatenate([self.train.clips[source] for source in bucket.sources]) for bucket in plan.buckets
        ]
        self.reader = reader or read_encoded

    def batch(self, micro_batch: MicroBatch) -> Batch:
        """Read one micro-batch. A sample that cannot be read stands in it with `valid` 0 and its reason."""
        bucket = self.plan.buckets[micro_batch.bucket]
        showings = [Showing(self.identity, occurrence) for occurrence in micro_batch.occurrences.tolist()]
        clips = self.buckets[micro_batch.bucket][micro_batch.items].tolist()
        places = [
            first + (int(showing.generator("variant").integers(count)) if count > 1 else 0)
            for (first, count), showing in zip(clips, showings, strict=True)
        ]
        rows = self.train.rows.take(places).to_pylist()
        return read_batch(rows, showings, bucket.frames, self.reader, self.channels)


def read_encoded(row: Mapping[str, Any], showing: Showing) -> latents.Sample:
    """The reader of what `encode` wrote."""
    return latents.read(row)


def read_batch(
    rows: list[dict[str, Any]], showings: list[Showing], frames: int, reader: Reader, channels: tuple[int, int]
) -> Batch:
    """Read samples of one shape; longer ones are cut to their first `frames` frames.

    `channels`: of the latent and of the text. They matter where no sample can be read: zeros of the least size then
    keep this rank in step with the others.
    """
    samples: list[latents.Sample | None] = []
    problems = []
    passing = ""
    for row, showing in zip(rows, showings, strict=True):
        try:
            samples.append(reader(row, showing))
        except (ValueError, OSError) as error:
            samples.append(None)
            problems.append(str(error))
            if exits.passes(error) or exits.passes(error.__cause__):
                passing = problems[-1]
    size = next((sample.mean.shape[2:] for sample in samples if sample is not None), (2, 2))
    tokens = max([len(sample.text) for sample in samples if sample is not None], default=1)
    mean = torch.zeros(len(rows), channels[0], frames, *size, dtype=torch.bfloat16)
    logvar = torch.zeros_like(mean)
    text = torch.zeros(len(rows), 1, tokens, channels[1], dtype=torch.bfloat16)
    for place, sample in enumerate(samples):
        if sample is not None:
            mean[place], logvar[place] = sample.mean[:, :frames], sample.logvar[:, :frames]
            text[place, 0, : len(sample.text)] = sample.text
    return Batch(
        ids=[row["sample_id"] for row in rows],
        mean=mean,
        logvar=logvar,
        text=text,
        lengths=tuple(1 if sample is None else len(sample.text) for sample in samples),
        showings=showings,
        valid=torch.tensor([0.0 if sample is None else 1.0 for sample in samples]),
        problems=problems,
        frames=frames,
        height=rows[0]["height"],
        width=rows[0]["width"],
        fps=[row["pose_rate"] for row in rows],
        scaling_factor=rows[0]["scaling_factor"],
        passing=passing,
    )


def prefetched(make: Callable[[int], Batch], numbers: Iterable[int], threads: int, ahead: int) -> Iterator[Batch]:
    """`make(number)` for each number, in order, computed by threads up to `ahead` items early.

    Threads suffice: reading mapped files, checksums and copies all release the interpreter's lock.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
    waiting: deque[Future[Batch]] = deque()
    try:
        for number in numbers:
            waiting.append(pool.submit(make, number))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
