"""XL/2's training step on one NVIDIA GPU, in bf16: seconds, clips per hour, and how far from what the GPU can do.

The step is preflight's: 32 poses of 360p, forward, loss, backward, clipping, AdamW, moving average, in the micro-batch
that the recommended run gives each rank, and in smaller ones that recompute less or nothing. Texts differ in length.
Beside it in the same run the rate of a large matrix product, which is the limit, and the memory that `plan` counts.
A profile names the kernels that take most. Writes results/bench/gpu.json.
"""

import argparse
import dataclasses
import gc
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from torch.profiler import ProfilerActivity, profile

from brickreel import config, files
from brickreel.cluster.checks import compute
from brickreel.evaluation import planning
from brickreel.evaluation.machine import Machine
from brickreel.models.stdit2 import STDiT2, fused
from brickreel.models.stdit2.attention import flash_kernel
from brickreel.models.stdit2.flops import forward_flops
from brickreel.telemetry.peaks import bf16_tflops
from brickreel.training import backends, objective, rehearsal
from brickreel.training.buckets import Bucket, BucketPlan

ROOT = Path(__file__).resolve().parent.parent
RUN = "text2bricks-360p-32f-poses"
ORIGIN_CLIPS_PER_HOUR = 97_200 / 32
"""Of one of the origin's GPUs."""
DEVICE = torch.device("cuda")
# Name -> (micro-batch, share of blocks that are recomputed, attention to the text, whether kernels are compiled).
WAYS = {
    "8 clips, all blocks recomputed": (8, 1.0, "sdpa", False),
    "8 clips, all blocks recomputed, flash-attn": (8, 1.0, "flash", False),
    "8 clips, all blocks recomputed, compiled kernels": (8, 1.0, "sdpa", True),
    "2 clips, half of the blocks recomputed": (2, 0.5, "sdpa", False),
    "1 clip, nothing recomputed": (1, 0.0, "sdpa", False),
}
LENGTHS = (200, 61, 120, 34, 88, 150, 47, 73)
STEPS = 3


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options.add_argument("--kernels", type=int, default=25, help="how many kernels of the profile to print")
    chosen = options.parse_args()
    if not torch.cuda.is_available():
        print("not measured: this machine has no NVIDIA GPU")
        return
    name = torch.cuda.get_device_name()
    copies = compute.copies("cuda")
    found: dict[str, Any] = {
        "gpu": name,
        "torch": torch.__version__,
        "products_tflops": compute.tflops("cuda", 2.0),
        "copies_gb_s": copies._asdict() if copies else None,
        "peak_tflops": bf16_tflops(name),
        "ways": {},
    }
    print(f"{name}: {found['products_tflops']:.0f} TFLOP/s in large bf16 products, {found['copies_gb_s']}", flush=True)
    for way in chosen.ways:
        if "flash" in way and flash_kernel() is None:
            print(f"{way}: flash-attn is not installed")
            continue
        torch.cuda.empty_cache()
        try:
            row = measure(*WAYS[way], found["products_tflops"], name)
        except torch.OutOfMemoryError:
            print(f"{way}: more memory than this GPU has", flush=True)
            continue
        finally:
            gc.collect()
        found["ways"][way] = row
        print(told(way, row), flush=True)
    found["kernels"] = {}
    for compiled in (False, True) if chosen.kernels else ():
        print(f"kernels that take most of a step of two clips, {'' if compiled else 'not '}compiled:")
        found["kernels"]["compiled" if compiled else "plain"] = rows = kernels(chosen.kernels, compiled)
        for kernel in rows:
            print(f"{kernel['ms']:9.2f} ms {kernel['calls']:6d}  {kernel['name'][:110]}")
    files.write_json("results/bench/gpu.json", found)


def told(way: str, row: dict[str, Any]) -> str:
    """A way's row as a line."""
    mfu = "MFU not known" if row["mfu"] is None else f"MFU {row['mfu']:.1%}"
    beside_origin = row["clips_per_hour"] / ORIGIN_CLIPS_PER_HOUR
    return (
        f"{way:48} {row['step_s']:.3f} s (first {row['first_step_s']:.0f} s), {row['clips_per_hour']:.0f} clips/h"
        f" ({beside_origin:.2f} of the origin's), {row['tflops']:.0f} TFLOP/s, {mfu},"
        f" {row['of_products']:.0%} of products; {row['peak_gib']:.1f} GiB, counted {row['counted_gib']:.1f}"
    )


class Step:
    """The run's step on one GPU, with random weights and latents."""

    def __init__(self, clips: int, recomputed: float, attention: str, compiled: bool) -> None:
        changes = {"backend": "ddp", "micro_batches": 1, "grad_checkpoint": recomputed, "compile_kernels": compiled}
        self.run = config.load(ROOT / "config.yaml").run(RUN).model_copy(update=changes)
        self.bucket = Bucket("360p-32f", 32, 360, 640, items=64, batch=clips)
        torch.manual_seed(0)
        with DEVICE:
            model = STDiT2.preset("XL/2", attn_implementation=attention)
        model.recompute(recomputed)
        self.backend = backends.build("ddp", model.train(), self.run, 1, DEVICE)
        self.batch = dataclasses.replace(rehearsal.random_batch(self.bucket, model.config), lengths=LENGTHS[:clips])
        self.kind = objective.diffusion(self.run)

    def __call__(self) -> float:
        """Take one; its seconds."""
        return rehearsal._step(self.backend, self.kind, self.run, self.batch, DEVICE)


def measure(
    clips: int, recomputed: float, attention: str, compiled: bool, products_tflops: float, gpu: str
) -> dict[str, Any]:
    """One way of taking the step."""
    torch.cuda.reset_peak_memory_stats()
    step = Step(clips, recomputed, attention, compiled)
    first = step()
    seconds = statistics.median(step() for _ in range(STEPS))
    sizes = step.backend.model.config
    # Padding is no work: each clip's own tokens.
    flops = sum(3 * forward_flops(sizes, 32, 45, 80, length) for length in step.batch.lengths)
    rate, peak = flops / seconds / 1e12, bf16_tflops(gpu)
    return {
        "first_step_s": first,
        "compiled": fused.Kernels.compiled,
        "step_s": seconds,
        "clips_per_hour": clips / seconds * 3600,
        "tflops": rate,
        "mfu": rate / peak if peak else None,
        "of_products": rate / products_tflops,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        "device_used_gib": (lambda free, total: (total - free) / 2**30)(*torch.cuda.mem_get_info()),
        "counted_gib": counted(step),
    }


def counted(step: Step) -> float:
    """What `plan` counts for the tensors of this step."""
    with tempfile.TemporaryDirectory() as folder:
        step.backend.model.save_config(folder)
        model = planning.Model.read(Path(folder))
        plan = BucketPlan((step.bucket,), "bench", step.bucket.items, 0)
        work = planning.Work.of(plan, step.run, model, max(step.batch.lengths))
        return planning.memory(work, step.run, Machine(gpus=1))["memory_gib"]["total"]


def kernels(count: int, compiled: bool) -> list[dict[str, Any]]:
    """The kernels that take most of a step of two clips, all blocks recomputed."""
    torch.cuda.empty_cache()
    step = Step(2, 1.0, "sdpa", compiled)
    step()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        step()
    rows = sorted(recorded.key_averages(), key=lambda row: -row.self_device_time_total)
    return [{"name": row.key, "ms": row.self_device_time_total / 1000, "calls": row.count} for row in rows[:count]]


if __name__ == "__main__":
    main()
