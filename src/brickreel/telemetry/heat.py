"""Devices over time: matrices for heat maps, and envelopes (spread over devices) for charts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brickreel.telemetry import recordings
from brickreel.telemetry.digest import MOST_COLUMNS, Digest, merged
from brickreel.telemetry.goodput import Attempt
from brickreel.telemetry.recordings import Array

GPU_MAPS = {
    "sm_active_pct": "SM active",
    "tensor_pct": "Tensor cores active",
    "clock_ratio_pct": "SM clock, share of the highest",
}
ENVELOPES = {
    "kernel_time_pct": "time with a kernel (utilization.gpu)",
    "sm_active_pct": "SM active",
    "tensor_pct": "tensor cores active",
    "gpu_power_w": "power",
}


@dataclass
class HeatMap:
    """A matrix [rows, columns] of values with NaN where nothing was measured; time runs to the right."""

    title: str
    unit: str
    rows: list[str]
    values: Array
    start_s: float
    end_s: float
    low: float
    high: float


Maps = list[HeatMap]


def maps(recorded: Sequence[Digest], attempts: Sequence[Attempt]) -> Maps:
    """All heat maps of a run for which something was measured."""
    result = [made for column, title in GPU_MAPS.items() if (made := _gpu_map(recorded, column, title))]
    waits = _wait_map(attempts)
    return [*result, waits] if waits else result


def _gpu_map(recorded: Sequence[Digest], column: str, title: str) -> HeatMap | None:
    keys = sorted({(item.node, gpu["device"]) for item in recorded for gpu in item.gpus}, key=_by_number)
    if not any((device, column) in item.series for item in recorded for _, device in keys):
        return None
    values = np.stack([merged(recorded, node, (device, column)) for node, device in keys])
    start, end = float(recorded[0].edges[0]), float(recorded[0].edges[-1])
    return HeatMap(title, "%", [f"{node} {device}" for node, device in keys], values, start, end, 0, 100)


def _by_number(key: tuple[str, str]) -> tuple[str, int]:
    return key[0], int(key[1][3:])


def _wait_map(attempts: Sequence[Attempt]) -> HeatMap | None:
    """Share of each step that a rank spent in communication that nothing hid, itself waiting for the slowest."""
    with_steps = [attempt for attempt in attempts if len(attempt.steps) and attempt.log.ranks > 1]
    if not with_steps:
        return None
    ranks = max(attempt.log.ranks for attempt in with_steps)
    start = min(float(np.nanmin(attempt.durations["time_s"])) for attempt in with_steps)
    end = max(float(np.nanmax(attempt.durations["time_s"])) for attempt in with_steps)
    edges = np.linspace(start, end + 1e-6, min(MOST_COLUMNS, sum(len(a.steps) for a in with_steps)) + 1)
    values = np.full((ranks, len(edges) - 1), np.nan)
    for rank in range(ranks):
        own = [attempt for attempt in with_steps if rank < attempt.log.ranks]
        times = np.concatenate([attempt.durations["time_s"][:, rank] for attempt in own])
        share = np.concatenate(
            [100 * attempt.durations["comm_s"][:, rank] / attempt.durations["step_s"][:, rank] for attempt in own]
        )
        good = ~np.isnan(times) & ~np.isnan(share)
        values[rank] = recordings.bucket_means(times[good], share[good], edges)
    if np.isnan(values).all():
        return None
    rows = [" ".join([f"rank {rank}", *_nodes_of(rank, with_steps)]) for rank in range(ranks)]
    high = max(10.0, float(np.nanmax(values)))
    return HeatMap("Waiting in collectives, share of the step", "%", rows, values, start, end, 0, high)


def _nodes_of(rank: int, attempts: Sequence[Attempt]) -> list[str]:
    """The nodes on which a rank was, in order, each once."""
    return list(dict.fromkeys(attempt.nodes[rank] for attempt in attempts if rank < len(attempt.nodes)))


def envelopes(recorded: Sequence[Digest]) -> dict[str, Any]:
    """Spread over all GPUs, and the cores used on the nodes, over time; {} for what was not measured."""
    if not recorded:
        return {"hours": [], "gpu": {}, "cores": {}}
    edges = recorded[0].edges
    middle = (edges[:-1] + edges[1:]) / 2 - edges[0]
    result: dict[str, Any] = {"hours": [float(value) / 3600 for value in middle], "gpu": {}, "cores": {}}
    for column in ENVELOPES:
        lines = [item.series[key] for item in recorded for key in item.series if key[1] == column]
        if lines:
            result["gpu"][column] = _spread(np.stack(lines))
    for node in sorted({item.node for item in recorded}):
        result["cores"][node] = [float(value) for value in merged(recorded, node, None)]
    return result


def _spread(stack: Array) -> dict[str, list[float]]:
    """Percentiles over devices [devices, columns] -> four lists [columns], NaN where none was measured."""
    shares = {"lowest": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95}
    lines = recordings.column_quantiles(stack, list(shares.values()))
    return {name: [float(value) for value in line] for name, line in zip(shares, lines, strict=True)}
