"""Reading latents: clips per second of one worker, beside what disk and memory allow, and memory over ten epochs.

Latents of 32 x 45 x 80 (360p) with texts of 200 x 4096, at random. Limit: 100 clips per second per worker and flat
memory. The floor is reading the same bytes from the page cache and copying them once. Beside it, what an index of a
million samples costs each rank before the first step. Writes results/bench/loader.json.
"""

import os
import resource
import statistics
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

import _project
from _limits import at_least, at_most, judge
from brickreel import config, tables
from brickreel.stages import train
from brickreel.training import latents
from brickreel.training.buckets import data_key, plan_buckets
from brickreel.training.dataset import Dataset, prefetched
from brickreel.training.order import Order

CLIPS, EPOCHS = 96, 10
SAMPLES = 1_000_000
RUN = {"data": {"time": "poses", "buckets": {"360p": {32: [1.0, 8]}}}, "micro_batches": 1}


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as place, chdir(place):
        result = measure() | index_of(SAMPLES)
    print(f"one worker                {result['clips_per_s']:8.0f} clips/s")
    print(f"  without checksums       {result['clips_per_s_unchecked']:8.0f} clips/s")
    print(f"  reading and one copy    {result['clips_per_s_floor']:8.0f} clips/s")
    print(f"through two loader threads{result['clips_per_s_two_threads']:8.0f} clips/s")
    print(f"memory over {EPOCHS} epochs    {result['growth_mib']:+8.1f} MiB")
    print(
        f"an index of {SAMPLES:,} samples: planned in {result['plan_s']:.1f} s, opened in {result['open_s']:.1f} s,",
        end="",
    )
    print(f" {result['bytes_per_sample']:.0f} bytes of memory per sample")
    limits = [at_least("clips_per_s", result["clips_per_s"], 100), at_most("growth_mib", result["growth_mib"], 64)]
    judge("results/bench/loader.json", result, limits)


def measure() -> dict[str, float]:
    """All figures of a dataset on disk, its pages in memory."""
    settings = _project.write(RUN, CLIPS, latent=(4, 32, 45, 80), tokens=200, channels=4096)
    run = config.load(settings).run("bench")
    plan = train.read_plan("bench")
    order = Order(plan, run.seed)
    index = tables.read("encode_index", train.INDEX)
    data = Dataset(index, run.data, plan, order.identity, (4, 4096))
    unchecked = Dataset(
        index, run.data, plan, order.identity, (4, 4096), lambda row, showing: latents.read(row, check=False)
    )
    one_epoch = range(order.per_epoch)
    epoch_s = []
    for epoch in range(EPOCHS + 1):
        begun = time.process_time()
        for number in one_epoch:
            data.batch(order.micro_batch(epoch * order.per_epoch + number))
        epoch_s.append(time.process_time() - begun)
        if epoch == 0:
            at_first = _resident_mib()
    growth = _resident_mib() - at_first
    begun = time.process_time()
    for number in one_epoch:
        unchecked.batch(order.micro_batch(number))
    unchecked_s = time.process_time() - begun
    begun = time.perf_counter()
    for _ in prefetched(lambda number: data.batch(order.micro_batch(number)), one_epoch, 2, 4):
        pass
    threads_s = time.perf_counter() - begun
    return {
        "mib_per_clip": sum(path.stat().st_size for path in latents.part_files(Path("results/encode/00")))
        / CLIPS
        / 2**20,
        "clips_per_s": CLIPS / statistics.median(epoch_s[1:]),
        "clips_per_s_unchecked": CLIPS / unchecked_s,
        "clips_per_s_floor": CLIPS / _floor_s(),
        "clips_per_s_two_threads": CLIPS / threads_s,
        "growth_mib": growth,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def index_of(samples: int) -> dict[str, float]:
    """What planning and opening an index of so many samples costs, one in twenty of them held out."""
    run = config.load({"runs": {"bench": RUN}}).run("bench")
    numbers = np.random.default_rng(0).permutation(samples)
    clips = pa.array([f"{number:016x}" for number in numbers.tolist()])
    files_of = pa.array([f"results/encode/00-{place // 256:04d}.safetensors" for place in range(samples)])
    columns = {field.name: pa.nulls(samples, field.type) for field in tables.SCHEMAS["encode_index"]}
    columns |= {"sample_id": pc.binary_join_element_wise(clips, "360p-32f-0.56-poses1.0.0.5", "."), "clip_id": clips}
    columns |= {"split": pa.array(np.where(numbers % 20, "train", "heldout")), "crc32": pa.array(numbers)}
    columns |= {"file": files_of, "text_file": files_of}
    same = {
        "kind": "clip",
        "bucket": "360p-32f-0.56-poses1",
        "frames": 32,
        "height": 360,
        "width": 640,
        "outcome": "ok",
    }
    same |= {"pose_rate": 12.0, "offset": 0, "crop": 0.5, "scaling_factor": 0.18215, "text_tokens": 99, "reason": ""}
    columns |= {name: pa.repeat(pa.scalar(value), samples) for name, value in same.items()}
    columns["data_keys"] = pa.array([[data_key(run.data)]] * samples)
    index = pa.table({name: columns[name] for name in columns}).cast(tables.SCHEMAS["encode_index"])
    begun = time.process_time()
    plan = plan_buckets(index, run)
    planned = time.process_time()
    data = Dataset(index, run.data, plan, "bench", (4, 4096))
    opened = time.process_time()
    assert len(data.train) + len(data.heldout) == samples
    held = data.train.rows.nbytes + data.heldout.rows.nbytes
    return {"plan_s": planned - begun, "open_s": opened - planned, "bytes_per_sample": held / samples}


def _floor_s() -> float:
    """Processor seconds to read every byte from the page cache into one buffer."""
    buffer = bytearray(16 << 20)
    begun = time.process_time()
    for path in latents.part_files(Path("results/encode/00")):
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return time.process_time() - begun


def _resident_mib() -> float:
    """Anonymous memory of this process: mapped files are the page cache's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no RssAnon")


if __name__ == "__main__":
    main()
