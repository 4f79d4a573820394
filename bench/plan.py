"""The plan's forecast against what training then takes, on this machine, at three sizes.

Limits: seconds per step within 15 %, memory within 10 %. Memory is the most that torch's allocator has handed out at
once, from before the model is made to the end of the third step, as torch.profiler records it: weights, gradients,
optimizer, moving average, activations, and the micro-batches read ahead, which the forecast leaves out. What Python and
its libraries take is the same for any run and stands in neither. Writes results/bench/plan.json.
"""

import os
import statistics
import sys
import tempfile
import time
from contextlib import chdir
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from torch.profiler import ProfilerActivity, profile

import _project
from _limits import at_most, judge
from brickreel import config, files
from brickreel.stages import plan

STEPS, PROFILED_STEPS = 12, 3
SIZES = {
    "4 poses of 64 x 64": (8, 4, 8, 8),
    "16 poses of 64 x 64": (8, 16, 8, 8),
    "8 poses of 128 x 128": (8, 8, 16, 16),
}


WAYS = {
    "": {},
    "checkpointed": {"grad_checkpoint": True},
    "half checkpointed": {"grad_checkpoint": 0.5},
    "one micro-batch": {"micro_batches": 1},
    "LoRA": {"lora": {"rank": 8}},
}


def project(latent: tuple[int, int, int, int], **changes: Any) -> dict[str, Any]:
    """Write a project of one size under the present folder. Returns its configuration."""
    resolution = {8: "64p", 16: "128p"}[latent[2]]
    run = {
        "data": {"time": "poses", "buckets": {resolution: {latent[1]: [1.0, 4]}}},
        "max_steps": 1000,
        "micro_batches": 2,
        "precision": "fp32",
        "grad_checkpoint": False,
        "checkpoint_every": 10**6,
        "gauge_every": 10**6,
    }
    return _project.write(run | changes, 24, latent, 12, 64)


def measure(latent: tuple[int, int, int, int]) -> dict[str, Any]:
    """Forecast and measured seconds per step of one size."""
    settings = project(latent)
    forecast = config.load(settings, {"plan": {"calibrate": True, "calibrate_s": 12}})
    plan.run(forecast, "bench")
    told = files.read_json("results/plan/bench/plan.json")["step_s"]
    moments = [time.perf_counter() for _ in _project.steps(_project.trainer(settings), STEPS)]
    taken = statistics.median(later - earlier for earlier, later in pairwise(moments[1:]))
    return {"forecast_s": told, "measured_s": taken, "off": told["value"] / taken - 1}


def measure_memory(latent: tuple[int, int, int, int], changes: dict[str, Any]) -> dict[str, Any]:
    """Forecast and measured MiB of one size, trained in one way."""
    settings = project(latent, **changes)
    plan.run(config.load(settings), "bench")
    told = files.read_json("results/plan/bench/plan.json")["memory_gib"]["total"] * 1024
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        for _ in _project.steps(_project.trainer(settings), PROFILED_STEPS):
            pass
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return {"forecast_mib": told, "measured_mib": most / 2**20, "off": told / (most / 2**20) - 1}


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    seconds, memory = {}, {}
    for name, latent in SIZES.items():
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            seconds[name] = measure(latent)
        for way, changes in WAYS.items():
            with tempfile.TemporaryDirectory() as folder, chdir(folder):
                memory[f"{name} {way}".strip()] = measure_memory(latent, changes)
    for name, row in seconds.items():
        print(
            f"{name:36} forecast {row['forecast_s']['value']:7.3f} s, measured {row['measured_s']:7.3f} s per step:"
            f" {row['off']:+6.1%}"
        )
    for name, row in memory.items():
        print(
            f"{name:36} forecast {row['forecast_mib']:6.1f} MiB, measured {row['measured_mib']:6.1f} MiB:"
            f" {row['off']:+6.1%}"
        )
    limits = [at_most(f"time, {name}: off by", abs(row["off"]), 0.15) for name, row in seconds.items()]
    limits += [at_most(f"memory, {name}: off by", abs(row["off"]), 0.10) for name, row in memory.items()]
    found = {"load_average": os.getloadavg()[0], "sizes": seconds, "memory": memory}
    judge("results/bench/plan.json", found, limits)


if __name__ == "__main__":
    main()
