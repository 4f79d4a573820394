"""Collectives between the ranks: right results first, then bandwidth.

Bus bandwidth as nccl-tests defines it (doc/PERFORMANCE.md): all_reduce 2(n-1)/n, all_gather and reduce_scatter
(n-1)/n of the total bytes per second.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from brickreel.cluster.checks import Check, at_least

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

WARM_UP, REPEATS = 1, 5


class Timing(NamedTuple):
    """One collective at one size."""

    name: str
    mib: float
    seconds: float
    bus_gb_s: float
    right: bool
    calls: int = 1
    """How often it ran, warm-up included."""


def measure(name: str, mib: float, device: str, group: "ProcessGroup | None" = None) -> Timing:
    """Time one collective, the slowest rank's median of `REPEATS`. All ranks of the group call this together."""
    import torch
    import torch.distributed as dist

    size = dist.get_world_size(group)
    elements = max(1, int(mib * 2**20 / 4) // size) * size
    call, right = _prepare(name, elements, device, group)
    seconds = []
    for repeat in range(WARM_UP + REPEATS):
        dist.barrier(group)
        started = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        if repeat >= WARM_UP:
            seconds.append(time.perf_counter() - started)
    worst = torch.tensor([median(seconds), 0.0 if right() else 1.0], device=device)
    dist.all_reduce(worst, dist.ReduceOp.MAX, group)
    share = (2 if name == "all_reduce" else 1) * (size - 1) / size
    slowest = worst[0].item()
    bus_gb_s = share * elements * 4 / slowest / 1e9
    return Timing(name, elements * 4 / 2**20, slowest, bus_gb_s, worst[1].item() == 0, WARM_UP + REPEATS)


def _prepare(
    name: str, elements: int, device: str, group: "ProcessGroup | None"
) -> tuple[Callable[[], object], Callable[[], bool]]:
    """The collective as a call, and the check of its result. Sums of small integers are exact in float32."""
    import torch
    import torch.distributed as dist

    size, rank = dist.get_world_size(group), dist.get_rank(group)
    total = size * (size + 1) / 2
    own = torch.full((elements // size,), rank + 1.0, device=device)
    if name == "all_reduce":
        data = torch.empty(elements, device=device)

        def reduce() -> None:
            data.fill_(rank + 1.0)
            dist.all_reduce(data, group=group)

        return reduce, lambda: bool((data == total).all())
    if name == "all_gather":
        parts = [torch.empty_like(own) for _ in range(size)]
        return lambda: dist.all_gather(parts, own, group=group), lambda: all(
            bool((part == index + 1.0).all()) for index, part in enumerate(parts)
        )
    if name == "reduce_scatter":
        whole, piece = torch.full((elements,), rank + 1.0, device=device), torch.empty_like(own)
        return lambda: dist.reduce_scatter_single(piece, whole, group=group), lambda: bool((piece == total).all())
    raise ValueError(f"there is no collective '{name}': choose all_reduce, all_gather or reduce_scatter")


def check(timing: Timing, node: str, expected_gb_s: float | None) -> Check:
    """Judge a timing against what the fabric should give; without an expectation the result is only recorded."""
    name = f"{timing.name} {timing.mib:.0f} MiB"
    if not timing.right:
        return Check(name, node, "fail", timing.bus_gb_s, "GB/s", "", "the collective gave a wrong result")
    if expected_gb_s is None:
        return Check(name, node, "pass", timing.bus_gb_s, "GB/s", "right result; speed is judged on adapters, at 1 GiB")
    return at_least(
        name,
        node,
        timing.bus_gb_s,
        "GB/s",
        0.9 * expected_gb_s,
        0.8 * expected_gb_s,
        f"{timing.bus_gb_s:.0f} of {expected_gb_s:.0f} GB/s: see the fabric checks of this node",
    )
