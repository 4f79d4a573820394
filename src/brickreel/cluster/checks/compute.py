"""Arithmetic on all ranks at once, copies on one of a node at a time: a GPU that throttles or sits badly is slower."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from brickreel.cluster.checks import Check, at_least

WARN_SHARE, FAIL_SHARE = 0.95, 0.90
"""Of the job's median, on GPUs."""
BUS_SHARE = 0.7
"""Of the slot's rate: 45 GB/s from the host on PCIe 5 x16, where 55 is usual, and 22 on PCIe 4, where 25 is."""
REPEATS = 20


class Copies(NamedTuple):
    """Bytes per second of one GPU, in GB/s."""

    memory: float
    """Read and written within its own memory, both counted."""
    host: float
    """From the host's pinned memory."""


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


def copies(device: str) -> Copies | None:
    """Copies within a GPU's memory and to it from the host's; None without a GPU."""
    import torch

    if device == "cpu":
        return None
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)

    def seconds(copy: Callable[[], object]) -> float:
        found = []
        for _ in range(REPEATS):
            torch.cuda.synchronize()
            started = time.perf_counter()
            copy()
            torch.cuda.synchronize()
            found.append(time.perf_counter() - started)
        return median(found)

    memory = 2 * source.numel() / seconds(lambda: target.copy_(source)) / 1e9
    return Copies(memory, host.numel() / seconds(lambda: target[: host.numel()].copy_(host, non_blocking=True)) / 1e9)


def check_copies(nodes: Sequence[str], found: Sequence[Copies | None], bus_gb_s: float | None) -> list[Check]:
    """Judge each rank's copies, by rank: memory against the median of all, the host's against the slot's rate too."""
    measured = [(rank, one) for rank, one in enumerate(found) if one]
    if not measured:
        return [Check("memory copies", "all", "not measured", reason="there is no GPU")]
    middle = Copies(*(median(values) for values in zip(*(one for _, one in measured), strict=True)))
    checks = []
    for rank, one in measured:
        node = nodes[rank]
        reason = f"rank {rank} on {node} copies {one.memory:.0f} GB/s in its memory, the median is {middle.memory:.0f}"
        share = one.memory / middle.memory
        checks.append(at_least("memory copies", node, share, "of the median", WARN_SHARE, FAIL_SHARE, reason))
        least = max(BUS_SHARE * (bus_gb_s or 0.0), FAIL_SHARE * middle.host)
        reason = f"rank {rank} on {node} gets {one.host:.0f} GB/s from the host: see to its slot, and to the pinning"
        checks.append(at_least("copies from the host", node, one.host, "GB/s", least, least, reason))
    return checks
