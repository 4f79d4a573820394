"""`attempts.jsonl`: when a training run was tried, on what, and how it ended."""

import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from brickreel import tables
from brickreel.cluster.ranks import Ranks


class AttemptLog:
    """This attempt's two rows, written by rank 0. Every rank learns the attempt's number."""

    def __init__(self, folder: Path, ranks: Ranks, device: torch.device, backend: str) -> None:
        self.path, self.rank = folder / "attempts.jsonl", ranks.rank
        self.started_s = time.time()
        self.begun = False
        self.warnings = ""
        shared: list[Any] = [(_next_number(self.path), os.environ.get("SLURM_JOB_ID"))]
        nodes: list[Any] = [ranks.node]
        if ranks.world_size > 1:
            nodes = [None] * ranks.world_size
            dist.all_gather_object(nodes, ranks.node)
            dist.broadcast_object_list(shared, src=0)
        self.number, job_id = shared[0]
        self.fixed = {
            "attempt": self.number,
            "world_size": ranks.world_size,
            "nodes": nodes,
            "gpus": ranks.world_size if device.type == "cuda" else 0,
            "job_id": job_id,
            "backend": backend,
        }

    def start(self, first_step: int | None, reason: str = "") -> None:
        """The attempt began when this log was made; `reason` holds warnings, such as a damaged checkpoint."""
        self.begun, self.warnings = True, reason
        self._write("start", self.started_s, first_step=first_step, last_step=None, outcome="ok", reason=reason)

    def end(self, last_step: int | None, outcome: str, reason: str = "") -> None:
        """`ok`: finished; `dropped`: stopped on request; `failed`: with the error as the reason."""
        if not self.begun:
            self.start(None)
        reason = "; ".join(sentence for sentence in (self.warnings, reason) if sentence)
        self._write("end", time.time(), first_step=None, last_step=last_step, outcome=outcome, reason=reason)

    def _write(self, event: str, time_s: float, **columns: Any) -> None:
        if self.rank == 0:
            tables.log("attempts", self.path, self.fixed | {"event": event, "time_s": time_s} | columns)


def _next_number(path: Path) -> int:
    rows = tables.read_log("attempts", path)
    return max([value for value in rows["attempt"].to_pylist() if value is not None], default=-1) + 1
