"""What resuming and saving cost: the first batch of a late epoch, a restart, and how long a checkpoint stops training.

Limits: the first batch of epoch 1,000 of a plan of 100 million samples in 1 s and 200 MB above the imports; the
stall of an asynchronous checkpoint at most a tenth of a synchronous one's. Writes results/bench/resume.json.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch

import _project
from _limits import at_most, judge
from brickreel.training.checkpoint import Checkpoints

MEBIBYTES = 512
RUN = {
    "data": {"time": "poses", "buckets": {"64p": {16: [1.0, 8]}}},
    "max_steps": 1000,
    "micro_batches": 1,
    "precision": "fp32",
    "grad_checkpoint": False,
    "checkpoint_every": 10**6,
    "gauge_every": 10**6,
}
ORDER = """
import json, resource, time
from brickreel.training.buckets import Bucket, BucketPlan
from brickreel.training.order import Order
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begun = time.perf_counter()
order = Order(BucketPlan((Bucket('a', 32, 360, 640, 100_000_000, 8),), 'x', 100_000_000, 0), 1)
batch = order.micro_batch(1000 * order.per_epoch)
seconds = time.perf_counter() - begun
print(json.dumps({'s': seconds, 'mb': (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6}))
"""


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    done = subprocess.run([sys.executable, "-c", ORDER], capture_output=True, text=True, check=True)
    result: dict[str, Any] = {"load_average": os.getloadavg()[0], "order": json.loads(done.stdout)}
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as place, chdir(place):
        result |= {"restart": restart(), "stall": stalls()}
    order, stall = result["order"], result["stall"]
    print(f"first batch of epoch 1,000   {order['s'] * 1000:8.2f} ms {order['mb']:6.1f} MB")
    print(f"restart to the first step    {result['restart']['resume_s']:8.2f} s, of it the checkpoint's check and load")
    print(f"  from nothing               {result['restart']['fresh_s']:8.2f} s")
    print(f"a checkpoint of {MEBIBYTES} MiB: sync  {stall['sync_s']:8.3f} s, async {stall['async_s']:.3f} s")
    print(f"  stall ratio                {stall['ratio']:8.3f}")
    print(f"  copying alone              {stall['copy_s']:8.3f} s")
    limits = [at_most("first batch, s", order["s"], 1), at_most("first batch, mb", order["mb"], 200)]
    judge("results/bench/resume.json", result, [*limits, at_most("stall ratio", stall["ratio"], 0.1)])


def restart() -> dict[str, float]:
    """Seconds from a loaded dataset to the first step's end, from nothing and from a checkpoint."""
    settings = _project.write(RUN, clips=64, latent=(8, 16, 8, 8), tokens=24, channels=64)
    first = _project.trainer(settings)
    list(_project.steps(first, 2))
    first._save(wait=True)
    first.checkpoints.close()
    seconds = {}
    for name, folder in (("fresh_s", "results/train/other"), ("resume_s", "results/train/bench")):
        begun = time.perf_counter()
        made = _project.trainer(settings, folder=folder)
        row = next(iter(_project.steps(made, 1)))
        seconds[name] = time.perf_counter() - begun
        assert row["step"] == (1 if name == "fresh_s" else 3)
        made.checkpoints.close()
    return seconds


def stalls() -> dict[str, float]:
    """Seconds that `save` holds the caller, with and without waiting, for the same tensors in turns."""
    count = MEBIBYTES * 2**20 // 4 // 64
    tensors = {f"model.{number}": torch.randn(count) for number in range(64)}
    seconds: dict[str, list[float]] = {"sync_s": [], "async_s": []}
    store = Checkpoints(Path("stall"), 0, 1, _project.CPU)
    for turn in range(4):
        for name, wait in (("sync_s", True), ("async_s", False)):
            begun = time.perf_counter()
            store.save(2 * turn + int(wait), tensors, {"step": turn}, wait=wait)
            if turn:  # the first turn makes the stager's buffers
                seconds[name].append(time.perf_counter() - begun)
            store.wait(must_succeed=True)
            store.prune(1, None, 0, {})
    store.close()
    begun = time.perf_counter()
    copies = [value.clone() for value in tensors.values()]
    copy_s = time.perf_counter() - begun
    assert len(copies) == 64
    found = {name: statistics.median(values) for name, values in seconds.items()}
    return found | {"ratio": found["async_s"] / found["sync_s"], "copy_s": copy_s}


if __name__ == "__main__":
    main()
