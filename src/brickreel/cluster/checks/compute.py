"""Arithmetic on every rank at once: a GPU that throttles or a core that is shared is slower than its peers."""

import time
from statistics import median

from brickreel.cluster.checks import Check, at_least

WARN_SHARE, FAIL_SHARE = 0.95, 0.90
"""Of the job's median, on GPUs."""


def tflops(device: str, seconds: float, size: int | None = None) -> float:
    """Sustained matrix multiplication in TFLOP/s over about `seconds`, bfloat16 on a GPU and float32 on a CPU."""
    import torch

    cuda = device != "cpu"
    size = size or (8192 if cuda else 256)
    dtype = torch.bfloat16 if cuda else torch.float32
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype, device=device)
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while not rates or time.perf_counter() < end:
        started = time.perf_counter()
        for _ in range(10):
            torch.mm(left, right, out=out)
        if cuda:
            torch.cuda.synchronize()
        rates.append(10 * 2 * size**3 / (time.perf_counter() - started) / 1e12)
    return median(rates)


def check(nodes: list[str], rates: list[float], cuda: bool) -> list[Check]:
    """Judge each rank against the median of all; `nodes` and `rates` are by rank. CPU ranks share cores: not judged."""
    if not cuda:
        value = median(rates)
        return [
            Check("arithmetic", "all", "pass", value, "TFLOP/s per rank", "not judged on CPUs, whose cores are shared")
        ]
    middle = median(rates)
    return [
        at_least(
            "arithmetic",
            node,
            rate / middle,
            "of the median",
            WARN_SHARE,
            FAIL_SHARE,
            f"rank {rank} on {node} does {rate:.0f} TFLOP/s, the median is {middle:.0f}: look at its clocks and heat",
        )
        for rank, (node, rate) in enumerate(zip(nodes, rates, strict=True))
    ]
