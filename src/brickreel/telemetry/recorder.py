"""The recorder: one per node, beside every stage, in a process of its own.

A process and not a thread, because a stage may hold the interpreter's lock for seconds, and because the record must
outlive a crash of the stage: the sampler ends when the pipe to its parent closes, however the parent died.
"""

import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from brickreel.cluster import ranks
from brickreel.config import Telemetry

logger = logging.getLogger("brickreel")

FOLDER = Path("logs/telemetry")
SECONDS_TO_FINISH = 20.0
"""A sampler that takes longer to write its last rows is left to itself."""


@contextmanager
def recording(stage: str, part: str, settings: Telemetry, enabled: bool = True) -> Iterator[None]:
    """Record this node while the body runs, into `logs/telemetry/{stage}/{part}/{attempt}-{node}.arrow`.

    Never raises on its own account: a recorder that cannot start is a line in the log, and a gap in the report.
    """
    sampler = _start(stage, part, settings) if enabled and settings.enabled else None
    try:
        yield
    finally:
        if sampler:
            _finish(sampler)


def _start(stage: str, part: str, settings: Telemetry) -> subprocess.Popen[bytes] | None:
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname() or "localhost"
    try:
        path = claim(FOLDER / stage / part, file_name(node))
        tasks = ranks.discover().local_world_size
        order = {
            "path": str(path),
            "pid": os.getpid(),
            # Ranks that share a node share a parent (slurmstepd, torchrun): the tree below it holds them all.
            "root": os.getppid() if tasks > 1 else os.getpid(),
            "period_s": settings.period_s,
            "facts": {
                "stage": stage,
                "part": part,
                "node": node,
                "tasks": str(tasks),
                "job_id": os.environ.get("SLURM_JOB_ID", ""),
            },
        }
        return subprocess.Popen(
            [sys.executable, "-m", "brickreel.telemetry.sampler", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=path.with_suffix(".err").open("wb"),
            # Its own session: an interrupt from the terminal ends the stage, and the end of the stage ends the sampler.
            start_new_session=True,
        )
    except OSError as error:
        logger.warning("telemetry: %s of part %s is not recorded: %s", stage, part, error)
        return None


def _finish(sampler: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        if sampler.stdin:
            sampler.stdin.close()
    try:
        code = sampler.wait(SECONDS_TO_FINISH)
    except subprocess.TimeoutExpired:
        logger.warning("telemetry: the recorder is still writing; it ends by itself")
        return
    if code:
        logger.warning("telemetry: the recorder ended with status %d: see the .err file under %s", code, FOLDER)


def file_name(node: str) -> str:
    """A node's name reduced to what may stand after the hyphen of a recording's name; its facts hold it as it is."""
    return re.sub(r"[^A-Za-z0-9._]", "_", node)


def claim(folder: Path, node: str) -> Path:
    """Create and return the file of this node's next attempt; two recorders never get the same one."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = [int(path.name.split("-")[0]) for path in folder.glob(f"*-{node}.*") if path.name.split("-")[0].isdecimal()]
    attempt = max(taken, default=0) + 1
    while True:
        path = folder / f"{attempt}-{node}.arrow"
        try:
            path.touch(exist_ok=False)
            return path
        except FileExistsError:
            attempt += 1
