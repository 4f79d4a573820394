"""Where a step's time goes, on this rank, as JSON lines."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from brickreel import tables

PARTS = ("data", "forward", "backward", "comm", "optimizer", "checkpoint", "gauge")


class Clock:
    """Sums seconds per part of a step. On a GPU it records events, and waits for none before `read`.

    A rank's own work (`local`) is what it does before the first collective. The host's clock does not see a GPU's:
    there it is loading, forward passes, and all backward passes but the last, which exchanges gradients.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.spans: list[tuple[str, Any, Any]] = []
        self.added: dict[str, float] = {}
        self.begun = time.perf_counter()

    def mark(self) -> Any:
        """A point in time: of the host, or of the GPU's stream."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def span(self, part: str, since: Any) -> Any:
        """Count the time since a mark to a part; returns a new mark."""
        now = self.mark()
        self.spans.append((part, since, now))
        return now

    def add(self, part: str, seconds: float) -> None:
        """Count seconds of the host to a part."""
        self.added[part] = self.added.get(part, 0.0) + seconds

    def read(self, exposed_s: float = 0.0) -> dict[str, float]:
        """Seconds per part and of the whole step; starts the next step. Waits for the device.

        `exposed_s` of the backward passes were communication.
        """
        total = dict.fromkeys(PARTS, 0.0) | {"local": 0.0} | self.added
        if self.cuda and self.spans:
            # An event that the device has not passed yet has no time.
            self.spans[-1][2].synchronize()
        passes = []
        for part, first, last in self.spans:
            seconds = first.elapsed_time(last) / 1000 if self.cuda else last - first
            total[part] += seconds
            if part in ("forward", "backward"):
                passes.append(seconds)
        if self.cuda:
            total["local"] = total["data"] + sum(passes[:-1])
        total["comm"] += exposed_s
        total["backward"] -= exposed_s
        now = time.perf_counter()
        total["step"] = now - self.begun
        self.begun, self.spans, self.added = now, [], {}
        return total


class StepLog:
    """`steps/{attempt}-{rank}.jsonl` of a run."""

    def __init__(self, folder: Path, attempt: int, rank: int) -> None:
        self.path = folder / f"{attempt}-{rank}.jsonl"
        self.fixed = {"attempt": attempt, "rank": rank}

    def write(self, seconds: Mapping[str, float | None], row: dict[str, Any]) -> None:
        """Append one step's row of the schema `steps`. Seconds are None where they are not known."""
        durations = {f"{part}_s": value for part, value in seconds.items()}
        tables.log("steps", self.path, self.fixed | {"time_s": time.time()} | durations | row)
