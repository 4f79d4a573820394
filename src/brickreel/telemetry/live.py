"""A running job as its shared folder shows it now: the newest steps of every rank, the newest samples of every node."""

import json
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from brickreel import files
from brickreel.telemetry import recorder
from brickreel.telemetry.training import asked_alike, setting

PLANS = Path("results/plan")
TAIL_BYTES = 32768
"""What is read of the end of each step log: some fifty steps."""
MOST_ROWS = 2000
"""Rows of a batch that are looked at: the last samples of every device are at its end."""


class StreamTail:
    """The last rows of a telemetry stream that is being written; only what is new is read."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0
        self.schema: pa.Schema | None = None
        self.rows: dict[str, list[dict[str, Any]]] = {}
        """Device -> its last two samples."""

    def update(self) -> None:
        """Read the whole batches that came since the last call."""
        newest: list[pa.RecordBatch] = []
        try:
            with pa.memory_map(str(self.path)) as source:
                source.seek(self.offset)
                while True:
                    message = pa.ipc.read_message(source)
                    if self.schema is None:
                        self.schema = pa.ipc.read_schema(message)
                    else:
                        newest = [*newest[-1:], pa.ipc.read_record_batch(message, self.schema)]
                    self.offset = source.tell()
        except (OSError, EOFError, ValueError):
            pass  # the end for now: what is being written is read the next time
        for batch in newest:
            for row in batch.slice(max(batch.num_rows - MOST_ROWS, 0)).to_pylist():
                if row["event"] is None:
                    self.rows[row["device"]] = [*self.rows.get(row["device"], [])[-1:], row]


@dataclass
class State:
    """What is known of a run at this moment. What is not known is None."""

    run: str
    steps_planned: int | None = None
    attempt: Mapping[str, Any] | None = None
    ended: Mapping[str, Any] | None = None
    step: int | None = None
    step_at_s: float | None = None
    step_s: float | None = None
    loss: float | None = None
    clips_per_hour: float | None = None
    left_s: float | None = None
    ranks: list[dict[str, Any]] = field(default_factory=list)
    gauge: list[Mapping[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)


class Live:
    """Reads one run again and again."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.folder = Path("results/train") / run
        self.tails: dict[Path, StreamTail] = {}

    def read(self) -> State:
        """The state now."""
        state = State(self.run, self._planned())
        log = files.read_json_lines(self.folder / "attempts.jsonl")
        starts = [row for row in log if row.get("event") == "start"]
        if starts:
            state.attempt = starts[-1]
            ends = [row for row in log if row.get("event") == "end" and row["attempt"] == state.attempt["attempt"]]
            state.ended = ends[-1] if ends else None
            self._steps(state)
        latest: dict[tuple[str, int], Mapping[str, Any]] = {}
        for row in asked_alike(list(files.read_json_lines(self.folder / "gauge.jsonl"))):
            latest[(row["weights"], row["bin"])] = row
        state.gauge = [row for _, row in sorted(latest.items())]
        state.nodes = self._nodes()
        return state

    def _planned(self) -> int | None:
        """Steps of the whole run: by its settings, else by its plan, which knows them also where epochs are set."""
        for path, name in ((self.folder / "settings.json", "max_steps"), (PLANS / self.run / "plan.json", "steps")):
            try:
                steps = setting(files.read_json(path), name)
            except (OSError, ValueError):
                continue
            if isinstance(steps, int):
                return steps
        return None

    def _steps(self, state: State) -> None:
        assert state.attempt is not None
        number = state.attempt["attempt"]
        by_rank = {}
        for path in (self.folder / "steps").glob(f"{number}-*.jsonl"):
            named = re.fullmatch(r"\d+-(\d+)", path.stem)
            if named and (rows := tail(path)):
                by_rank[int(named[1])] = rows
        if not by_rank:
            return
        newest = max((rows[-1] for rows in by_rank.values()), key=lambda row: row["step"])
        state.step, state.step_at_s = newest["step"], newest["time_s"]
        state.loss = _mean([row["loss"] for row in by_rank[min(by_rank)][-20:]])
        state.step_s = statistics.median(row["step_s"] for row in by_rank[min(by_rank)])
        clips = sum(_mean([row["samples"] for row in rows]) or 0.0 for rows in by_rank.values())
        state.clips_per_hour = 3600 * clips / state.step_s if state.step_s else None
        if state.steps_planned and state.ended is None:
            state.left_s = max(state.steps_planned - newest["step"], 0) * state.step_s
        local = {rank: _median([row["local_s"] for row in rows]) for rank, rows in by_rank.items()}
        middle = _median(list(local.values()))
        nodes = state.attempt.get("nodes") or []
        state.ranks = [
            {
                "rank": rank,
                "node": nodes[rank] if rank < len(nodes) else None,
                "behind": newest["step"] - by_rank[rank][-1]["step"],
                "slower_pct": 100 * (own / middle - 1) if own is not None and middle else None,
            }
            for rank, own in sorted(local.items())
        ]

    def _nodes(self) -> list[dict[str, Any]]:
        newest: dict[str, Path] = {}
        for path in (recorder.FOLDER / "train" / self.run).glob("*-*.arrow"):
            attempt, _, node = path.stem.partition("-")
            if attempt.isdecimal() and (node not in newest or int(newest[node].stem.split("-")[0]) < int(attempt)):
                newest[node] = path
        self.tails = {path: self.tails.get(path) or StreamTail(path) for path in newest.values()}
        rows = []
        for node, path in sorted(newest.items()):
            self.tails[path].update()
            if "" in self.tails[path].rows:
                rows.append(_node(node, self.tails[path].rows))
        return rows


def tail(path: Path) -> list[dict[str, Any]]:
    """The last whole rows of a JSON-lines file."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(size - TAIL_BYTES, 0))
        lines = stream.read().split(b"\n")
    rows = []
    for line in lines[1 if size > TAIL_BYTES else 0 :]:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict) and row.get("step_s")]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _node(name: str, rows: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    host = rows[""]
    gpus = [samples[-1] for device, samples in rows.items() if device.startswith("gpu")]
    return {
        "node": name,
        "age_s": max(time.time() - host[-1]["time_s"], 0.0),
        "cores": _rate(host, "tree_cpu_s"),
        "cores_allowed": host[-1]["allowed_cores"],
        "memory_gib": None if host[-1]["tree_rss_b"] is None else host[-1]["tree_rss_b"] / 2**30,
        "gpus": len(gpus),
        "kernel_time_pct": _mean([gpu["kernel_time_pct"] for gpu in gpus]),
        "sm_active_pct": _mean([gpu["sm_active_pct"] for gpu in gpus]),
        "tensor_pct": _mean([gpu["tensor_pct"] for gpu in gpus]),
        "power_w": _mean([gpu["gpu_power_w"] for gpu in gpus]),
        "temp_c": max((gpu["gpu_temp_c"] for gpu in gpus if gpu["gpu_temp_c"] is not None), default=None),
    }


def _rate(samples: Sequence[Mapping[str, Any]], column: str) -> float | None:
    if len(samples) < 2 or None in (samples[0][column], samples[1][column]):
        return None
    return (samples[1][column] - samples[0][column]) / max(samples[1]["mono_s"] - samples[0]["mono_s"], 1e-9)
