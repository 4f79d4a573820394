"""A training step of STDiT2 beside a plain implementation of the same formulas: seconds, peak memory, equal numbers.

Depth 4, 288 channels, 4 heads, latent 16 x 23 x 40, fp32, one thread; forward, IDDPM loss, backward; with and without
frame masks. Times are processor time of steps in turns, of each kind the fastest, so that other work on the machine
counts little; memory is measured in a process of its own for each kind. Writes results/bench/stdit2.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import _plain_stdit2 as plain
from _limits import at_most, judge
from brickreel.diffusion.iddpm import IDDPM
from brickreel.models.stdit2 import STDiT2
from brickreel.models.stdit2.flops import forward_flops
from brickreel.models.stdit2.products import linear

SIZES = {"depth": 4, "hidden_size": 288, "num_heads": 4, "caption_channels": 256, "model_max_length": 200}
LATENT = (4, 16, 23, 40)
RECOMPUTED = {"ours, half of the blocks recomputed": 0.5, "ours, all blocks recomputed": 1.0}
KINDS = ("plain", "ours", "ours, compiled", *RECOMPUTED)
STEPS, ROUNDS = 5, 8
TEXT_TOKENS = 60  # that the mask leaves
LIMITS = {"time_ratio": 0.7, "memory_ratio": 0.6}


def inputs(masked: bool) -> dict[str, torch.Tensor]:
    """One clip's latents, noise, timestep, text and sizes; a quarter of the frames is clean when `masked`."""
    generator = torch.Generator().manual_seed(0)
    x_mask = torch.ones(1, LATENT[1], dtype=torch.bool)
    x_mask[:, : LATENT[1] // 4] = False
    sizes = {"num_frames": 16.0, "height": 184.0, "width": 320.0, "ar": 184 / 320, "fps": 8.0}
    return {
        "x0": torch.randn(1, *LATENT, generator=generator),
        "noise": torch.randn(1, *LATENT, generator=generator),
        "t": torch.tensor([501]),
        "y": torch.randn(1, 1, 200, 256, generator=generator),
        "mask": (torch.arange(200) < TEXT_TOKENS)[None].long(),
        "x_mask": x_mask if masked else None,
        **{name: torch.tensor([value]) for name, value in sizes.items()},
    }


def network() -> STDiT2:
    """The model with every layer filled, so that all of it shows in the output."""
    torch.manual_seed(0)
    model = STDiT2(**SIZES)
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def stepper(kind: str, masked: bool) -> Callable[[], tuple[float, float, float]]:
    """A function that takes one training step, and returns its seconds, loss and gradient norm."""
    torch.set_num_threads(1)
    model, given, process = network(), inputs(masked), IDDPM()
    kwargs = {name: given[name] for name in ("y", "mask", "num_frames", "height", "width", "ar", "fps")}
    if kind == "plain":
        state = dict(model.named_parameters()) | dict(model.named_buffers())

        def call(x, t, x_mask=None, **rest):
            return plain.forward(state, SIZES["num_heads"], x, t.float(), x_mask=x_mask, **rest)

    else:
        if kind in RECOMPUTED:
            model.recompute(RECOMPUTED[kind])
        call = torch.compile(model, fullgraph=True) if "compiled" in kind else model

    def step() -> tuple[float, float, float]:
        model.zero_grad(set_to_none=True)
        started = time.process_time()
        losses = process.training_losses(call, given["x0"], given["t"], given["noise"], kwargs, given["x_mask"])
        losses["loss"].mean().backward()
        seconds = time.process_time() - started
        squares = [float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None]
        return seconds, float(losses["loss"].mean()), sum(squares) ** 0.5

    return step


def memory(kind: str, masked: bool) -> dict[str, float]:
    """Peak memory above what stood before the first of several steps, and of the whole process."""
    step = stepper(kind, masked)
    before = peak_mib()
    for _ in range(STEPS):
        step()
    return {"peak_mib": peak_mib() - before, "process_mib": peak_mib()}


def times(kinds: Sequence[str], masked: bool) -> dict[str, dict[str, float]]:
    """Of each kind: seconds of the fastest and of the median step, the median share of plain's time, its numbers."""
    steppers = {kind: stepper(kind, masked) for kind in kinds}
    taken = {kind: [] for kind in kinds}
    for _ in range(ROUNDS + 1):
        for kind, step in steppers.items():
            taken[kind].append(step())
    seconds = {kind: [row[0] for row in rows[1:]] for kind, rows in taken.items()}
    base = seconds[kinds[0]]
    return {
        kind: {
            "seconds": min(mine),
            "seconds_median": median(mine),
            "time_ratio_median": median(one / other for one, other in zip(mine, base, strict=True)),
            "loss": taken[kind][-1][1],
            "grad_norm": taken[kind][-1][2],
        }
        for kind, mine in seconds.items()
    }


def products_seconds() -> float:
    """What the matrix products of a step take alone, at the rate at which this core does the MLP's."""
    torch.set_num_threads(1)
    C, tokens = SIZES["hidden_size"], LATENT[1] * -(-LATENT[2] // 2) * -(-LATENT[3] // 2)
    x, weight = torch.randn(tokens, C), torch.randn(4 * C, C)
    taken = []
    for _ in range(20):
        started = time.process_time()
        linear(x, weight, None)
        taken.append(time.process_time() - started)
    return 3 * forward_flops(SIZES, *LATENT[1:], TEXT_TOKENS) / (2 * tokens * 4 * C * C / min(taken))


def peak_mib() -> float:
    """Most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(*words: str, **environment: str) -> dict[str, Any]:
    """This script in a process of its own: what it prints last."""
    command = [sys.executable, __file__, "--one", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure everything, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="What to measure; plain comes first.")
    given = parser.parse_args()
    if given.one:
        what, kinds, masked = given.one
        measured = times(kinds.split("|"), masked == "True") if what == "times" else memory(kinds, masked == "True")
        print(json.dumps(measured))
        return
    products = products_seconds()
    print(f"the matrix products alone take {products:.2f} s at this core's rate", flush=True)
    rows = []
    for masked in (False, True):
        measured = alone("times", "|".join(given.kinds), str(masked))
        for kind in given.kinds:
            row = {"kind": kind, "masked": masked, **measured[kind]}
            # Large blocks go back to the system as soon as they are free: the peak is what was needed at once.
            row |= alone("memory", kind, str(masked), MALLOC_MMAP_THRESHOLD_="262144")
            base = row if kind == "plain" else next(r for r in rows if r["kind"] == "plain" and r["masked"] == masked)
            row["time_ratio"], row["memory_ratio"] = (row[key] / base[key] for key in ("seconds", "peak_mib"))
            row["loss_difference"] = abs(row["loss"] - base["loss"])
            row["grad_norm_difference"] = abs(row["grad_norm"] / base["grad_norm"] - 1)
            rows.append(row)
            print(
                f"{'masks' if masked else 'no masks':9} {kind:36} {row['seconds']:6.2f} s ({row['time_ratio']:.2f},"
                f" median {row['time_ratio_median']:.2f})"
                f" {row['peak_mib']:7.0f} MiB ({row['memory_ratio']:.2f})  loss {row['loss_difference']:.1e}"
                f"  gradient {row['grad_norm_difference']:.1e}",
                flush=True,
            )
    limits = [
        at_most(f"{'masks' if row['masked'] else 'no masks'}, {ratio}", row[ratio], limit)
        for row in rows
        for ratio, limit in LIMITS.items()
        if row["kind"] == "ours"
    ]
    found = {"sizes": SIZES, "latent": LATENT, "products_seconds": products, "rows": rows}
    judge(Path(__file__).parent.parent / "results/bench/stdit2.json", found, limits)


if __name__ == "__main__":
    main()
