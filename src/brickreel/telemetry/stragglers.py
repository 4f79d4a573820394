"""Slow ranks, found from each rank's own work before the first collective.

GPU counters cannot show them: a rank that waits spins inside a communication kernel and reads 100 %. The windowed form
also finds a rank that is slow only for a while, which a median over the whole run misses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from brickreel.telemetry.goodput import Attempt
from brickreel.telemetry.recordings import column_quantiles

Array = NDArray[np.float64]

WINDOW_STEPS = 100
LEAST_WINDOW_STEPS = 20
Z_LIMIT = 5.0
LEAST_WINDOWS = 2
# A normal distribution's standard deviation over its median absolute deviation.
MAD_TO_SIGMA = 1.4826


Place = tuple[int, str | None, int | None]
"""Rank, its node, and its index there."""


class Measure(NamedTuple):
    """One value of a rank's steps in a window that must stand out."""

    quantile: float
    slower_by: float
    error: float
    """Standard error of the quantile over that of a mean, of normal values."""


# Slow all the time; slow in one step of ten or more. A rare spike moves neither.
MEASURES = (Measure(0.5, 0.02, 1.2533), Measure(0.95, 0.10, 2.113))


@dataclass(frozen=True)
class Straggler:
    """A rank that was slower than its peers in at least two windows. On other nodes it is another."""

    rank: int
    node: str | None
    local_index: int | None
    """Which of the node's ranks it is."""
    slower_pct: float
    """Its excess over its peers, in its median step or in its slow ones: median over the windows that show it."""
    windows: int
    of_windows: int
    """Windows in which this place took part."""
    cost_rank_s: float
    """Its share of the seconds, times ranks, that all ranks together would have saved without the slow ones' delays."""
    node_ranks: int = 0
    """Ranks that its node held; 0 where the node is not known."""


@dataclass(frozen=True)
class SlowNode:
    """A node most of whose ranks were slow: together they are one fault."""

    node: str
    ranks: list[int]
    """The slow ones."""
    of_ranks: int
    slower_pct: float
    """Median over the slow ranks."""
    cost_rank_s: float
    """As of a straggler; the sum over the slow ranks."""


def windows_of(steps: int) -> list[slice]:
    """Windows of 100 steps; a shorter run is split in at least two windows of 20 or more, or has none."""
    size = min(WINDOW_STEPS, steps // LEAST_WINDOWS)
    if size < LEAST_WINDOW_STEPS:
        return []
    return [slice(start, start + size) for start in range(0, steps - size + 1, size)]


def normalised(local_s: Array, flops: Array) -> Array:
    """Local time as if every rank had done the step's mean work [steps, ranks]; as it is where no work was logged.

    Ranks draw clips of different shapes: only time per work shows a slow rank.
    """
    worked = flops > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(worked, flops, 0).sum(axis=1, keepdims=True) / worked.sum(axis=1, keepdims=True)
        return np.where(worked, local_s * mean / flops, np.where(np.isnan(flops), local_s, np.nan))


def excess(local_s: Array, measure: Measure) -> tuple[Array, Array]:
    """Relative excess of each rank over its peers' median, and its modified z, in one window [steps, ranks] -> [ranks].

    The scale is the spread of the peers (MAD), but never less than the standard error of one rank's value, since
    two or three ranks have hardly a spread of their own. A rank is not its own peer: among two it would be half of it.
    """
    values, medians = column_quantiles(local_s, [measure.quantile, 0.5])
    count = len(values)
    peers = np.broadcast_to(values, (count, count))[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    middle = np.median(peers, axis=1)
    spread = MAD_TO_SIGMA * np.median(np.abs(peers - middle[:, None]), axis=1)
    noise = MAD_TO_SIGMA * column_quantiles(np.abs(local_s - medians), [0.5])[0]
    error = measure.error * np.median(noise) / np.sqrt(len(local_s))
    scale = np.maximum(spread, max(error, 1e-12 * float(np.median(values)), 1e-300))
    return values / middle - 1, (values - middle) / scale


def slow_ranks(local_s: Array) -> dict[int, float]:
    """Rank -> relative excess, of the ranks that are slow in one window, by the first measure that shows it."""
    found: dict[int, float] = {}
    for measure in MEASURES:
        relative, z = excess(local_s, measure)
        for rank in np.flatnonzero((relative > measure.slower_by) & (z > Z_LIMIT)).tolist():
            found.setdefault(rank, float(relative[rank]))
    return found


def find(attempts: Sequence[Attempt]) -> list[Straggler]:
    """All slow ranks, the costliest first."""
    slow: dict[Place, list[float]] = {}
    cost: dict[Place, float] = {}
    count: dict[Place, int] = {}
    sizes: dict[Place, int] = {}
    for attempt in attempts:
        nodes = attempt.places
        local = attempt.durations["local_s"]
        if local.shape[1] < 2:
            continue
        fair = normalised(local, attempt.durations["flops"])
        places = [(rank, *(nodes[rank] if rank < len(nodes) else (None, None))) for rank in range(local.shape[1])]
        sizes |= {place: attempt.nodes.count(place[1]) for place in places}
        for window in windows_of(len(attempt.steps)):
            part = fair[window]
            if np.isnan(part).all(axis=0).any():
                continue
            for place in places:
                count[place] = count.get(place, 0) + 1
            found = slow_ranks(part)
            for rank, saved_s in _saved_s(part, list(found)).items():
                place = places[rank]
                slow.setdefault(place, []).append(100 * found[rank])
                cost[place] = cost.get(place, 0.0) + saved_s * local.shape[1]
    reported = [
        Straggler(*place, float(np.median(excesses)), len(excesses), count[place], cost[place], sizes[place])
        for place, excesses in slow.items()
        if len(excesses) >= LEAST_WINDOWS
    ]
    return sorted(reported, key=lambda straggler: -straggler.cost_rank_s)


def _saved_s(local_s: Array, slow: Sequence[int]) -> dict[int, float]:
    """Rank -> its share of the seconds by which a window's steps would be shorter without the slow ranks' delays.

    Priced together: where a whole node is slow, each of its ranks alone is hardly slower than the next. Shared by how
    much each was behind the slowest of the others.
    """
    if not slow:
        return {}
    # A rank that logged no such step, or had no work in it, delays nobody.
    known = np.nan_to_num(local_s, nan=0.0)
    rest = np.delete(known, slow, axis=1)
    # Two measures may find all of a few ranks slow: then the fastest of them is the measure.
    others = (rest if rest.size else known.min(axis=1, keepdims=True)).max(axis=1, keepdims=True)
    behind = np.where(others > 0, np.maximum(known[:, slow] - others, 0), 0)
    total = float(behind.max(axis=1).sum())
    shares = behind.sum(axis=0) / max(float(behind.sum()), 1e-300)
    return {rank: total * float(share) for rank, share in zip(slow, shares, strict=True)}


def slow_nodes(found: Sequence[Straggler], attempts: Sequence[Attempt]) -> list[SlowNode]:
    """Nodes most of whose ranks are among the slow ones (of two or more), the costliest first.

    Only of attempts on several nodes: where there is one, it cannot be slower than others.
    """
    compared = {node for attempt in attempts if len(set(attempt.nodes)) > 1 for node in attempt.nodes}
    by_node: dict[str, list[Straggler]] = {}
    for item in found:
        if item.node is not None and item.node in compared:
            by_node.setdefault(item.node, []).append(item)
    result = []
    for node, items in by_node.items():
        places, of_ranks = {item.local_index for item in items}, max(item.node_ranks for item in items)
        if len(places) >= 2 and len(places) > of_ranks / 2:
            slower_pct = float(np.median([item.slower_pct for item in items]))
            ranks, cost = sorted({item.rank for item in items}), sum(item.cost_rank_s for item in items)
            result.append(SlowNode(node, ranks, of_ranks, slower_pct, cost))
    return sorted(result, key=lambda item: -item.cost_rank_s)


def wait_for_slowest_pct(attempts: Sequence[Attempt]) -> tuple[float | None, float | None]:
    """How much shorter the mean step would be if no rank waited for the slowest, and what pure chance explains (%).

    The second is what the same steps would lose with every rank's times shuffled about a common median: even equal
    ranks wait for the slowest of them, and that must not be blamed on anybody.
    """
    lost, chance, total = 0.0, 0.0, 0.0
    generator = np.random.default_rng(0)
    for attempt in attempts:
        local = attempt.durations["local_s"]
        good = ~np.isnan(local).any(axis=1)
        if local.shape[1] < 2 or not good.any():
            continue
        fair = normalised(local, attempt.durations["flops"])[good]
        fair = fair[~np.isnan(fair).any(axis=1)]
        lost += float((fair.max(axis=1) - np.median(fair, axis=1)).sum())
        # Each rank's deviations from its own median, dealt to the ranks anew in each step.
        equal = generator.permuted(fair - np.median(fair, axis=0), axis=0)
        chance += float((equal.max(axis=1) - np.median(equal, axis=1)).sum())
        total += float(np.nanmax(attempt.durations["step_s"][good], axis=1).sum())
    return (100 * lost / total, 100 * chance / total) if total else (None, None)
