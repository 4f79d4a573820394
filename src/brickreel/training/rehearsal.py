"""A run's largest micro-batch, forward and backward, before training: does it fit, and how long does it take?

A rank that takes several per step takes two here: gradients of the first stand while the second goes, and FSDP2 holds
them whole until the last. The model has its real size and random weights, the latents are random: memory and time do
not depend on values. Beside it how fast this rank reads random samples of the dataset, which training has to keep up
with.
"""

import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from brickreel import tables
from brickreel.cluster.ranks import Ranks
from brickreel.config import Base, Run
from brickreel.models import load
from brickreel.training import backends, latents, lora, objective
from brickreel.training.buckets import Bucket, BucketPlan
from brickreel.training.dataset import Batch
from brickreel.training.randomness import Showing

# Pixels per latent row and column: the base models' autoencoders halve three times.
DOWNSAMPLE = 8


class Rehearsal(NamedTuple):
    """What the steps took on this rank."""

    bucket: str
    clips: int
    """Shown per step."""
    seconds: tuple[float, ...]
    """Per step; the first one is left out, which also compiles and allocates."""
    peak_gib: float | None
    """Of GPU memory; None on a CPU."""
    total_gib: float | None


def worst_bucket(plan: BucketPlan) -> Bucket:
    """The bucket with the most latent pixels per micro-batch."""
    return max(plan.buckets, key=lambda bucket: bucket.frames * bucket.height * bucket.width * _clips(bucket))


def _clips(bucket: Bucket) -> int:
    """Clips of its largest micro-batch."""
    return min(bucket.batch, bucket.slots)


def build(base: Base, run: Run, ranks: Ranks, device: torch.device) -> Any:
    """The run's model under its backend, with random weights. Raises ValueError or OSError without a base."""
    folder = load.locate("transformer", **base.transformer.model_dump())
    torch.manual_seed(run.seed)
    model = load.empty_transformer(folder)
    if run.lora:
        lora.inject(model, run.lora, run.seed)
    model.recompute(run.grad_checkpoint)
    name = backends.choose(run.backend, ranks.world_size, device)
    return backends.build(name, model.train(), run, ranks.world_size, device)


def rehearse(backend: Any, run: Run, plan: BucketPlan, device: torch.device, steps: int = 1) -> Rehearsal:
    """Take `steps` steps and one before them. A collective call of all ranks, since the backend's gradients are."""
    bucket = worst_bucket(plan)
    kind = objective.diffusion(run)
    batch = random_batch(bucket, backend.model.config)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    passes = 2 if run.micro_batches > backend.world_size else 1
    seconds = [_step(backend, kind, run, batch, device, passes) for _ in range(1 + steps)]
    peak = total = None
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**30
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        # What comes next may need the memory in another process.
        torch.cuda.empty_cache()
    return Rehearsal(bucket.name, passes * len(batch.ids), tuple(seconds[1:]), peak, total)


READ_S, MOST_READ = 2.0, 2048
READ_COLUMNS = ["sample_id", "clip_id", "kind", "file", "text_file", "crc32"]


def reading(index: Path, threads: int, seed: int) -> float | None:
    """Samples per second that this rank reads in random order from the disk, not from its own memory.

    None when the index names no latents. Raises ValueError when a sample cannot be read.
    """
    rng = np.random.default_rng(seed)
    parts = tables.files_of(index) if index.is_dir() else [index]
    if not parts:
        return None
    rows = tables.read("encode_index", parts[rng.integers(len(parts))], READ_COLUMNS)
    rows = rows.filter(rows["file"].is_valid())
    chosen = rows.take(rng.permutation(len(rows))[:MOST_READ]).to_pylist()
    if not chosen:
        return None
    _forget({row[column] for row in chosen for column in ("file", "text_file")})
    end = time.perf_counter() + READ_S

    def read(row: dict[str, Any]) -> bool:
        if time.perf_counter() > end:
            return False
        latents.read(row)
        return True

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(read, chosen))
    return count / (time.perf_counter() - started)


def _forget(paths: Iterable[str]) -> None:
    """Ask the system to drop what it holds of these files in memory."""
    for path in paths:
        with open(path, "rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(source: str, name: str, steps: int = 20) -> None:
    """Take real steps of a run in a process of its own and print the slowest rank's seconds, from rank 0."""
    import json

    import torch.distributed as dist

    from brickreel import config, files
    from brickreel.cluster import distributed
    from brickreel.training.encoding import choose_device

    settings = config.load(source)
    ranks = distributed.start()
    device = choose_device("auto", ranks.local_rank)
    plan = BucketPlan.from_json(files.read_json(f"results/plan/{name}/plan.json")["buckets"])
    run = settings.run(name)
    found = torch.tensor(rehearse(build(settings.base, run, ranks, device), run, plan, device, steps).seconds)
    if ranks.world_size > 1:
        dist.all_reduce(found, dist.ReduceOp.MAX)
    if ranks.rank == 0:
        print(json.dumps({"seconds": found.tolist()}))
    distributed.stop()


def _step(backend: Any, kind: Any, run: Run, batch: Batch, device: torch.device, passes: int) -> float:
    started = time.perf_counter()
    for left in reversed(range(passes)):
        with backend.round(left == 0):
            drawn = objective.draw(batch, run, device)
            backend.backward(objective.losses(kind, backend.wrapped, batch, drawn, backend.autocast).mean())
    backend.squares()
    backend.update(0.0, 1.0)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def random_batch(bucket: Bucket, sizes: Any) -> Batch:
    """A micro-batch in the bucket's shape; texts are as long as the model takes them."""
    count = _clips(bucket)
    rows, columns = bucket.height // DOWNSAMPLE, bucket.width // DOWNSAMPLE
    latent = torch.randn(count, sizes.in_channels, bucket.frames, rows, columns).bfloat16()
    tokens = int(sizes.model_max_length)
    return Batch(
        ids=[f"rehearsal-{place}" for place in range(count)],
        mean=latent,
        logvar=torch.zeros_like(latent),
        text=torch.randn(count, 1, tokens, sizes.caption_channels).bfloat16(),
        lengths=(tokens,) * count,
        showings=[Showing("rehearsal", place) for place in range(count)],
        valid=torch.ones(count),
        problems=[],
        frames=bucket.frames,
        height=bucket.height,
        width=bucket.width,
        fps=[8.0] * count,
        scaling_factor=1.0,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
