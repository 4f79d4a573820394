"""Step and attempt logs with chosen values."""

import json
from pathlib import Path
from typing import Any

from brickreel import tables

DEFAULTS: dict[str, Any] = dict.fromkeys(tables.SCHEMAS["steps"].names) | {
    "step_s": 1.0,
    "data_s": 0.0,
    "forward_s": 0.3,
    "backward_s": 0.6,
    "comm_s": 0.0,
    "optimizer_s": 0.1,
    "checkpoint_s": 0.0,
    "gauge_s": 0.0,
    "local_s": 0.9,
    "samples": 2,
    "sample_ids": ["a", "b"],
    "tokens": 100,
    "flops": 1e12,
    "loss": 1.0,
    "grad_norm": 1.0,
    "weight_norm": 1.0,
    "lr": 1e-4,
    "skipped": False,
}


def write_steps(folder: Path, attempt: int, rank: int, numbers, start_s: float = 0.0, **columns) -> Path:
    """One file; steps of `step_s` follow each other from `start_s` on. A column is a list, or one value for all."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, time_s = [], start_s
    for place, step in enumerate(numbers):
        own = {name: value[place] if isinstance(value, list) else value for name, value in columns.items()}
        row = DEFAULTS | {"attempt": attempt, "rank": rank, "step": step} | own
        time_s += row["step_s"]
        rows.append(row | {"time_s": own.get("time_s", time_s)})
    path = folder / f"{attempt}-{rank}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def attempt(number: int, start_s: float, end_s: float | None, ranks: int = 1, gpus: int = 0, **columns) -> list[dict]:
    """Rows of the attempts log; without an end the attempt was cut off."""
    row = dict.fromkeys(tables.SCHEMAS["attempts"].names) | {"attempt": number, "world_size": ranks, "gpus": gpus}
    row |= {"nodes": ["node0"] * ranks, "outcome": "ok", "reason": ""}
    rows = [row | {"event": "start", "time_s": start_s}]
    return rows if end_s is None else [*rows, row | {"event": "end", "time_s": end_s} | columns]
