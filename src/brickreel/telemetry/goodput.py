"""Where the time of a training run went: goodput, badput by cause, throughput, FLOP utilization. Pure arithmetic.

Every second of every attempt's allocation belongs to exactly one cause, so the shares sum to 100 %; what no record
explains is `unknown`, and shown. An attempt weighs as much as it had GPUs (ranks, where there is no GPU).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brickreel.telemetry.steps import Steps

Array = NDArray[np.float64]

CAUSES = {
    "goodput": "steps whose result survived, less what is listed below",
    "init": "from the start of the attempt to its first step: imports, data, model, process groups",
    "compile": "the first step's excess over the median step: compilation, allocator, autotuning",
    "data": "waiting for the data loader: in each step, the rank that waited longest",
    "comm_exposed": "communication that no computation hid: in each step, the rank that waited least",
    "checkpoint": "writing checkpoints while training waits",
    "eval": "reading the held-out loss",
    "redone": "steps that no checkpoint kept: computed again after a restart, or lost when the run ended",
    "skipped": "steps that changed nothing: not finite, or without a readable sample",
    "tail": "from the last step to the end of the attempt",
    "unknown": "what no record explains, such as gaps between steps",
}


@dataclass
class Attempt:
    """One attempt: its allocation, and its steps."""

    number: int
    start_s: float
    end_s: float
    ranks: int
    gpus: int
    log: Steps
    kept: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """Steps whose result survived [steps]."""
    newest: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """Steps that changed the weights and that no later attempt computed again: kept, or lost with the run [steps]."""
    outcome: str | None = None
    """None where no end was recorded: cut off, or still running."""
    reason: str | None = None
    nodes: tuple[str, ...] = ()
    """Node of each rank; empty where the attempt did not say."""

    @property
    def places(self) -> list[tuple[str, int]]:
        """Rank -> (node, index on that node)."""
        return [(node, self.nodes[:rank].count(node)) for rank, node in enumerate(self.nodes)]

    @property
    def steps(self) -> NDArray[np.int64]:
        """The step numbers [steps]."""
        return self.log.number

    @property
    def durations(self) -> dict[str, Any]:
        """Seconds by name, each [steps, ranks]; also samples, FLOPs and the Unix time of the step's end."""
        return self.log.by_rank

    @property
    def weight(self) -> int:
        """What a second of this attempt counts: its GPUs, or its ranks where it has none."""
        return self.gpus or self.ranks

    @property
    def length_s(self) -> float:
        """Seconds of the allocation."""
        return max(self.end_s - self.start_s, 0.0)


def attempts_of(
    log: Sequence[Mapping[str, Any]],
    steps: Mapping[int, Steps],
    seen_s: Mapping[int, tuple[float, float]] | None = None,
    saved_step: int | None = None,
) -> list[Attempt]:
    """Attempts in order, from the attempts log and the step logs.

    `seen_s[attempt]` are the first and the last sign of life in the telemetry: an attempt lasts at least from the one
    to the other. Without an end row, of an attempt that was cut off or still runs, that or its last step is its end.
    `saved_step` is the last step whose result survived: that a dead run left in a checkpoint, or a finished one in its
    final weights; None while the run lives.
    """
    starts = {row["attempt"]: row for row in log if row["event"] == "start"}
    ends = {row["attempt"]: row for row in log if row["event"] == "end"}
    result = []
    for number in sorted(starts.keys() | steps.keys()):
        seen = (seen_s or {}).get(number)
        result.append(_attempt(number, starts.get(number, {}), ends.get(number), steps.get(number, Steps()), seen))
    _mark_kept(result, np.inf if saved_step is None else saved_step)
    return result


def _attempt(
    number: int, start: Mapping[str, Any], end: Mapping[str, Any] | None, steps: Steps, seen: tuple[float, float] | None
) -> Attempt:
    times = steps.by_rank["time_s"]
    first = float(np.nanmin(times[0] - steps.by_rank["step_s"][0])) if len(times) else 0.0
    start_s = start.get("time_s", first)
    last = float(np.nanmax(times)) if len(times) else start_s
    end_s = end["time_s"] if end else max(start_s, last)
    if seen:
        start_s, end_s = min(start_s, seen[0]), max(end_s, seen[1])
    return Attempt(
        number,
        start_s,
        end_s,
        max(steps.ranks, start.get("world_size") or 1),
        start.get("gpus") or 0,
        steps,
        outcome=(end or {}).get("outcome"),
        reason=(end or {}).get("reason"),
        nodes=tuple(start.get("nodes") or ()),
    )


def _mark_kept(attempts: Sequence[Attempt], saved_step: float) -> None:
    """A step's result survived unless it was lost, or a later attempt computed that step, or an earlier one, again."""
    redone_from = np.inf
    for attempt in reversed(attempts):
        attempt.newest = (attempt.steps < redone_from) & ~attempt.log.skipped
        attempt.kept = attempt.newest & (attempt.steps <= saved_step)
        if len(attempt.steps):
            redone_from = min(redone_from, attempt.steps[0])


def shares(attempts: Sequence[Attempt]) -> dict[str, float | None] | None:
    """Cause -> percent of the allocated (GPU) time; sums to 100. None when no time was allocated.

    Communication that was not measured in every attempt is None, and within goodput.
    """
    total = sum(attempt.length_s * attempt.weight for attempt in attempts)
    if total <= 0:
        return None
    seconds = dict.fromkeys(CAUSES, 0.0)
    for attempt in attempts:
        for cause, amount in causes(attempt).items():
            seconds[cause] += amount * attempt.weight
    result: dict[str, float | None] = {cause: 100 * amount / total for cause, amount in seconds.items()}
    if not all(map(tells_communication, attempts)):
        result |= {"goodput": 100 * (seconds["goodput"] + seconds["comm_exposed"]) / total, "comm_exposed": None}
    return result


def tells_communication(attempt: Attempt) -> bool:
    """Whether the steps say how long communication was that no computation hid; no backend can tell it on GPUs."""
    return attempt.log.ranks == 1 or not np.isnan(attempt.durations["comm_s"]).all(axis=1).any()


def causes(attempt: Attempt) -> dict[str, float]:
    """Cause -> seconds of one attempt; sums to its length. Communication that was not measured is 0, and goodput."""
    seconds = dict.fromkeys(CAUSES, 0.0)
    if not len(attempt.steps):
        seconds["init"] = attempt.length_s
        return seconds
    wall = step_wall(attempt)
    ends = np.nanmax(attempt.durations["time_s"], axis=1)
    seconds["init"] = min(max(float(ends[0] - wall[0] - attempt.start_s), 0.0), attempt.length_s)
    seconds["tail"] = min(max(float(attempt.end_s - ends[-1]), 0.0), attempt.length_s - seconds["init"])
    kept = attempt.kept
    skipped = attempt.log.skipped
    seconds["redone"] = float(wall[~kept & ~skipped].sum())
    seconds["skipped"] = float(wall[skipped].sum())
    left = wall * kept
    if len(wall) >= 3 and kept[0]:
        excess = max(float(wall[0] - np.median(wall[1:])), 0.0)
        seconds["compile"] = excess
        left[0] -= excess
    # Each cause takes from what the ones before it left over: a second is never counted twice.
    for cause, column, reduce in (
        ("checkpoint", "checkpoint_s", np.nanmax),
        ("eval", "gauge_s", np.nanmax),
        ("data", "data_s", np.nanmax),
        ("comm_exposed", "comm_s", np.nanmin),
    ):
        part = np.minimum(_reduced(attempt.durations[column], reduce) * kept, left)
        seconds[cause] = float(part.sum())
        left = left - part
    seconds["goodput"] = float(left.sum())
    seconds["unknown"] = attempt.length_s - sum(seconds.values())
    if seconds["unknown"] < 0:
        # Rows overlap when clocks disagree: the surplus is taken off, so that the shares still sum to 100 %.
        scale = attempt.length_s / (attempt.length_s - seconds["unknown"])
        seconds = {cause: amount * scale for cause, amount in seconds.items() if cause != "unknown"} | {"unknown": 0.0}
    return seconds


def step_wall(attempt: Attempt) -> Array:
    """Seconds that each step took: those of the slowest rank [steps]."""
    return _reduced(attempt.durations["step_s"], np.nanmax)


def _reduced(values: Array, reduce: Any) -> Array:
    """One number per step from its ranks, 0 where no rank has one [steps]."""
    known = ~np.isnan(values).all(axis=1)
    result = np.zeros(len(values))
    if known.any():
        result[known] = reduce(values[known], axis=1)
    return result


def data_wait_pct(attempts: Sequence[Attempt]) -> float | None:
    """Time blocked in the loader, of the rank that waited longest in each step, over all steps (%)."""
    wall = sum(float(step_wall(attempt).sum()) for attempt in attempts)
    waited = sum(float(_reduced(attempt.durations["data_s"], np.nanmax).sum()) for attempt in attempts)
    return 100 * waited / wall if wall > 0 else None


def throughput(attempts: Sequence[Attempt]) -> dict[str, float | None]:
    """Clips of kept steps per hour of the allocation and per GPU-hour; of step time also those of lost steps."""
    clips = sum(float(np.nansum(attempt.durations["samples"][attempt.kept])) for attempt in attempts)
    allocated_h = sum(attempt.length_s for attempt in attempts) / 3600
    computed = sum(float(np.nansum(attempt.durations["samples"][attempt.newest])) for attempt in attempts)
    stepping_h = sum(float(step_wall(attempt)[attempt.newest].sum()) for attempt in attempts) / 3600
    gpu_h = sum(attempt.length_s * attempt.gpus for attempt in attempts) / 3600
    return {
        "clips_trained": clips,
        "clips_per_hour": clips / allocated_h if allocated_h else None,
        "clips_per_hour_of_steps": computed / stepping_h if stepping_h else None,
        "clips_per_gpu_hour": clips / gpu_h if gpu_h else None,
    }


def model_flops(attempts: Sequence[Attempt]) -> dict[str, float | None]:
    """FLOPs of steps that were not computed again later, and their rate over step time.

    Forward and backward, without recomputation.
    """
    flops = [attempt.durations["flops"] for attempt in attempts]
    work = sum(
        float(np.nansum(f[attempt.newest], dtype=np.float64)) for f, attempt in zip(flops, attempts, strict=True)
    )
    seconds = sum(float(step_wall(attempt)[attempt.newest].sum()) for attempt in attempts)
    weighted = sum(float(step_wall(attempt)[attempt.newest].sum()) * attempt.gpus for attempt in attempts)
    known = any(not np.isnan(f).all() for f in flops)
    return {
        "model_flops": work if known else None,
        "tflop_per_s": work / seconds / 1e12 if known and seconds else None,
        "tflop_per_s_per_gpu": work / weighted / 1e12 if known and weighted else None,
    }
