"""Clock offsets between nodes, by exchanged time stamps as NTP measures them (RFC 5905, section 8)."""

import time

from brickreel.cluster.checks import Check, at_most

WARN_MS, FAIL_MS = 10.0, 100.0
"""Logs of several nodes are set side by side by their time stamps: steps last seconds, collectives milliseconds."""
EXCHANGES = 8


def offsets(leaders: list[int], rank: int) -> list[float]:
    """Clock of each leading rank minus rank 0's, in milliseconds; the exchange with the shortest way counts.

    A collective call of the leading ranks of all nodes, rank 0 among them; only rank 0 gets numbers.
    """
    import torch
    import torch.distributed as dist

    found = [0.0]
    stamp = torch.zeros(1, dtype=torch.float64)
    for peer in leaders[1:]:
        best = (float("inf"), 0.0)
        for _ in range(EXCHANGES):
            if rank == leaders[0]:
                sent = time.time()
                dist.send(stamp, peer)
                dist.recv(stamp, peer)
                back = time.time()
                best = min(best, (back - sent, stamp.item() - (sent + back) / 2))
            elif rank == peer:
                dist.recv(stamp, leaders[0])
                stamp[0] = time.time()
                dist.send(stamp, leaders[0])
        found.append(best[1] * 1000)
    return found


def check(nodes: list[str], offsets_ms: list[float]) -> list[Check]:
    """Judge each node's offset against the median of all, so that rank 0's own wrong clock is named as such."""
    middle = sorted(offsets_ms)[len(offsets_ms) // 2] if len(offsets_ms) > 2 else 0.0
    return [
        at_most(
            "clock offset",
            node,
            abs(offset - middle),
            "ms",
            WARN_MS,
            FAIL_MS,
            f"the clock of {node} is {offset - middle:+.0f} ms off: let chrony or ntpd set it",
        )
        for node, offset in zip(nodes, offsets_ms, strict=True)
    ]
