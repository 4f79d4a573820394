"""A short measurement of training's own work on this machine, for forecasts that need not assume an MFU."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from brickreel.config import Run
from brickreel.evaluation.activations import Shape
from brickreel.evaluation.forecast import Interval
from brickreel.training.objective import TIMESTEPS, diffusion

WARM_UPS = 1
MOST_REPEATS = 5
# Two timings apart in time differ by more than a few in a row: other work on the machine, heat, file systems.
LEAST_SPREAD = 0.10


class Timing(NamedTuple):
    """Seconds of one piece of work: median, fastest and slowest."""

    median: float
    fastest: float
    slowest: float
    repeats: int


def micro_batches(
    model: nn.Module, shapes: Sequence[Shape], settings: Run, device: torch.device, budget_s: float
) -> list[Timing]:
    """Time forward and backward pass of one micro-batch of every shape, the budget shared evenly."""
    kind = diffusion(settings)
    autocast = torch.bfloat16 if settings.precision == "bf16" and device.type == "cuda" else None
    timings = []
    for shape in shapes:

        def numbers(value: float, shape: Shape = shape) -> torch.Tensor:
            return torch.full((shape.batch,), float(value), device=device)

        def work(shape: Shape = shape) -> None:
            size = (shape.batch, shape.channels, shape.frames, shape.latent_height, shape.latent_width)
            clean, noise = (torch.randn(size, device=device) for _ in range(2))
            kwargs = {
                "y": torch.randn(shape.batch, 1, shape.text_tokens, shape.text_channels, device=device),
                "mask": [shape.text_tokens] * shape.batch,
                "num_frames": numbers(shape.frames),
                "height": numbers(shape.height),
                "width": numbers(shape.width),
                "fps": numbers(8),
            }
            timestep = torch.randint(TIMESTEPS, (shape.batch,), device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast is not None):
                loss = kind.training_losses(model, clean, timestep, noise, kwargs)["loss"].mean()
            loss.backward()

        timings.append(_timed(work, device, budget_s / len(shapes)))
    return timings


def update(model: nn.Module, device: torch.device, budget_s: float) -> Timing:
    """Time what happens once per step: clipping, AdamW, and the moving average of the weights."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    average = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)

    def work() -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1e-4)

    timing = _timed(work, device, budget_s)
    for parameter in parameters:
        parameter.grad = None
    return timing


def _timed(work: Callable[[], None], device: torch.device, budget_s: float) -> Timing:
    seconds = []
    began = time.perf_counter()
    for repeat in range(WARM_UPS + MOST_REPEATS):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat >= WARM_UPS:
            seconds.append(time.perf_counter() - start)
        if seconds and time.perf_counter() - began > budget_s:
            break
    ordered = sorted(seconds)
    return Timing(ordered[len(ordered) // 2], ordered[0], ordered[-1], len(ordered))


def step(timings: Sequence[Timing], shares: Sequence[float], rounds: int, update_timing: Timing) -> Interval:
    """Seconds per optimizer step: `rounds` micro-batches one after another on each rank, then the update.

    `shares` are the buckets' shares of all micro-batches, in the order of `timings`.
    """
    total = sum(shares)

    def mean(part: str) -> float:
        weighted = sum(share * getattr(timing, part) for share, timing in zip(shares, timings, strict=True)) / total
        return rounds * weighted + getattr(update_timing, part)

    value = mean("median")
    return Interval(
        value, min(mean("fastest"), value * (1 - LEAST_SPREAD)), max(mean("slowest"), value * (1 + LEAST_SPREAD))
    )
