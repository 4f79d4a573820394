"""Locks that the system lets go of however their holder ends: no lock file ever has to be removed by hand."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from brickreel import files

LAUNCH_PATIENCE_S = 30.0
"""A launcher whose Snakemake was killed needs a moment to notice and let go, and ranks whose launcher was killed need
one to finish their step."""


@contextmanager
def only_launcher(stage: str, part: str) -> Iterator[TextIO]:
    """Hold the launch lock of a run: an open file, which local ranks inherit and so hold as long as they live.

    Raises ValueError that names the holder when another launcher has it.
    """
    where = Path("results") / stage / part / "launch.lock"
    with acquire(where, f"{stage} of '{part}' is already being launched", LAUNCH_PATIENCE_S) as held:
        yield held


def acquire(where: Path, sentence: str, patience_s: float = 0.0) -> TextIO:
    """Lock a file; closing it lets go. Raises ValueError, `sentence` and who holds it, after `patience_s` seconds."""
    where.parent.mkdir(parents=True, exist_ok=True)
    stream = where.open("a+", encoding="utf-8")
    deadline = time.monotonic() + patience_s
    while True:
        try:
            files.flock(stream, where)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                stream.close()
                raise ValueError(f"{sentence} by {holder}") from None
            time.sleep(0.2)
    stream.truncate(0)
    stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    stream.flush()
    return stream
