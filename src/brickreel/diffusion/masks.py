"""Which frames a training sample shows clean: the strategies by which Open-Sora 1.1 learns image conditioning."""

import random
from collections.abc import Mapping

import torch
from torch import Tensor

PLACES = ("random", "head", "tail", "head_tail")
STRATEGIES = tuple(f"{amount}_{place}" for amount in ("quarter", "image") for place in PLACES)


def check_ratios(ratios: Mapping[str, float]) -> None:
    """Raise ValueError for an unknown strategy, a negative share, or shares of more than one altogether."""
    unknown = sorted(set(ratios) - {*STRATEGIES, "no"})
    if unknown:
        raise ValueError(f"mask strategies {unknown} are not known: choose from no, {', '.join(STRATEGIES)}")
    if min(ratios.values(), default=0) < 0 or sum(ratios.values()) > 1 + 1e-6:
        raise ValueError(f"mask ratios must be at least 0 and sum to at most 1, not {dict(ratios)}")


def draw(ratios: Mapping[str, float], frames: int, generator: random.Random | torch.Generator) -> Tensor:
    """Draw a strategy and its place: bool [frames], False where a frame is shown clean.

    At least one frame is always noised, whatever the length; a single frame always is. `quarter` shows one to
    frames/4 frames (one for short videos), `image` a single one.

    Args:
        ratios: strategy -> probability; what is missing to one is unmasked.
        frames: T.
        generator: the source of chance; torch's, or Python's (which repeats the original's draws).
    """
    check_ratios(ratios)
    point = _uniform(generator)
    strategy, reached = "no", 0.0
    for name, share in ratios.items():
        reached += share
        if point < reached:
            strategy = name
            break
    mask = torch.ones(frames, dtype=torch.bool)
    if strategy == "no" or frames <= 1:
        return mask
    amount, place = strategy.split("_", 1)
    size = _between(generator, 1, max(1, frames // 4)) if amount == "quarter" else 1
    if place == "random":
        start = _between(generator, 0, frames - size)
        mask[start : start + size] = False
    if place in ("head", "head_tail"):
        mask[:size] = False
    if place in ("tail", "head_tail") and mask[:-size].any():
        mask[-size:] = False
    return mask


def _uniform(generator: random.Random | torch.Generator) -> float:
    if isinstance(generator, random.Random):
        return generator.random()
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def _between(generator: random.Random | torch.Generator, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    if isinstance(generator, random.Random):
        return generator.randint(low, high)
    return int(torch.randint(low, high + 1, (), generator=generator))
