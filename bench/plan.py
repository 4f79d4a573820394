"""The plan's forecast against what training then takes, on this machine, at three sizes.

Limit: seconds per step within 15 %. Writes results/bench/plan.json. Memory is not compared here: a process on a CPU
shares its heap with everything else, so that only a GPU's allocator can tell.
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

import _project
from brickreel import config, files
from brickreel.stages import plan

LIMIT = 0.15
STEPS = 12
SIZES = {
    "4 poses of 64 x 64": (4, 4, 8, 8),
    "16 poses of 64 x 64": (4, 16, 8, 8),
    "8 poses of 128 x 128": (4, 8, 16, 16),
}


def measure(latent: tuple[int, int, int, int]) -> dict[str, Any]:
    """Forecast and measured seconds per step of one size."""
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
    settings = _project.write(run, 24, latent, 12, 64)
    forecast = config.load(settings, {"plan": {"calibrate": True, "calibrate_s": 12}})
    plan.run(forecast, "bench")
    told = files.read_json("results/plan/bench/plan.json")["step_s"]
    moments = [time.perf_counter() for _ in _project.steps(_project.trainer(settings), STEPS)]
    taken = statistics.median(later - earlier for earlier, later in pairwise(moments[1:]))
    return {"forecast_s": told, "measured_s": taken, "off": told["value"] / taken - 1}


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    found = {}
    for name, latent in SIZES.items():
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            found[name] = measure(latent)
    load = os.getloadavg()[0]
    files.write_json("results/bench/plan.json", {"limit": LIMIT, "load_average": load, "sizes": found})
    for name, row in found.items():
        print(
            f"{name:22} forecast {row['forecast_s']['value']:.3f} s, measured {row['measured_s']:.3f} s per step:"
            f" {row['off']:+.0%} (limit {LIMIT:.0%})"
        )


if __name__ == "__main__":
    main()
