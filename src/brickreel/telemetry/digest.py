"""Recordings reduced one after the other, so that a day of 64 nodes never stands in memory at once."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brickreel.telemetry import recordings, usage
from brickreel.telemetry.recordings import Array, Event, Recording

MOST_COLUMNS = 240
"""Points in time that charts and heat maps show; fewer when there are fewer samples."""
SERIES = ("kernel_time_pct", "sm_active_pct", "tensor_pct", "gpu_power_w", "clock_ratio_pct")


@dataclass
class Digest:
    """What the report keeps of one recording."""

    stage: str
    part: str
    attempt: int
    node: str
    facts: dict[str, str]
    span_s: tuple[float, float]
    host: dict[str, Any]
    gpus: list[dict[str, Any]]
    ports: list[dict[str, Any]]
    events: list[Event]
    edges: Array
    """Unix times between which the series are averaged, common to the part's recordings that belong [columns + 1]."""
    series: dict[tuple[str, str], Array]
    """(GPU, column) -> means [columns]; NaN where nothing was measured."""
    cores: Array
    """Cores in use [columns]."""
    clock_step_s: float
    """Disagreement of wall clock and monotonic clock."""
    has_cgroup: bool
    ended: bool
    """Whether nobody writes it any more."""


Belongs = Callable[[str, str, tuple[float, float]], bool]
"""Whether a recording of a stage and part, from one Unix time to another, counts."""


def read_all(
    folder: Path,
    gaps: list[tuple[str, str]],
    only: tuple[str, str] | None = None,
    belongs: Belongs = lambda stage, part, span_s: True,
    settle: bool = False,
) -> list[Digest]:
    """Every readable recording below `folder`, or only of one (stage, part); `gaps` takes what cannot be read, and why.

    The report does not report on itself. Recordings that do not belong are read too, and do not stretch the time axis
    of those that do. With `settle` streams that a killed recorder has left are finished on the way.
    """
    parts: dict[tuple[str, str], list[tuple[Path, tuple[float, float, float]]]] = defaultdict(list)
    for path in recordings.paths(folder):
        stage, part = path.parent.parent.name, path.parent.name
        if stage == "report" or (only is not None and (stage, part) != only):
            continue
        path = recordings.settled(path) if settle else path
        if (span := _try(recordings.span_of, path, folder, gaps)) is not None:
            parts[(stage, part)].append((path, span))
    found = []
    for (stage, part), members in parts.items():
        own = [span for _, span in members if belongs(stage, part, span[:2])]
        edges = edges_of(own or [span for _, span in members])
        for path, _ in members:
            if (recording := _try(recordings.read, path, folder, gaps)) is not None:
                found.append(digest(recording, edges))
    return found


def edges_of(spans: Sequence[tuple[float, float, float]]) -> Array:
    """Equal stretches of time over all recordings of a part, each at least as long as two samples take."""
    start, end = min(span[0] for span in spans), max(span[1] for span in spans)
    columns = int((end - start) / (2 * max(span[2] for span in spans)))
    return np.linspace(start, end + 1e-6, min(max(columns, 1), MOST_COLUMNS) + 1)


def _try(call: Any, path: Path, folder: Path, gaps: list[tuple[str, str]]) -> Any:
    try:
        # A recording that ends just now changes from stream to finished file.
        return call(path if path.exists() else path.with_suffix(".parquet"))
    except (OSError, ValueError) as error:
        gaps.append((f"telemetry of {path.relative_to(folder).with_suffix('')}", str(error)))
        return None


def digest(recording: Recording, edges: Array) -> Digest:
    """One recording, reduced."""
    rows = recording.devices[""]
    return Digest(
        recording.stage,
        recording.part,
        recording.attempt,
        recording.node,
        recording.facts,
        recording.span_s,
        usage.host(recording),
        [usage.gpu(recording, device) for device in recording.gpus],
        [usage.port(recording, name) for name in recording.ports],
        recording.events,
        edges,
        {
            (device, column): recordings.bucket_means(recording.devices[device]["time_s"], values, edges)
            for device in recording.gpus
            for column in SERIES
            if not np.isnan(values := _values(recording, device, column)).all()
        },
        _cores(recording, edges),
        float(np.ptp(rows["time_s"] - rows["mono_s"])),
        bool((~np.isnan(rows["cgroup_cpu_s"])).any()),
        recordings.ended(recording.path),
    )


def _values(recording: Recording, device: str, column: str) -> Array:
    rows = recording.devices[device]
    if column == "clock_ratio_pct":
        return 100 * rows["sm_mhz"] / rows["sm_max_mhz"]
    return rows[column]


def _cores(recording: Recording, edges: Array) -> Array:
    rows = recording.devices[""]
    rates, lengths = recordings.rate(rows[f"{usage.cpu_source(recording)}_cpu_s"], rows["mono_s"])
    long = lengths >= recording.period_s / 2
    return recordings.bucket_means(rows["time_s"][1:][long], rates[long], edges)


def merged(found: Sequence[Digest], node: str, key: tuple[str, str] | None) -> Array:
    """One device's series (the node's cores for None) over all attempts; where two overlap the later one counts."""
    result = np.full(len(found[0].edges) - 1, np.nan)
    for item in sorted(found, key=lambda item: item.attempt):
        if item.node == node:
            values = item.cores if key is None else item.series.get(key)
            if values is not None:
                result = np.where(np.isnan(values), result, values)
    return result
