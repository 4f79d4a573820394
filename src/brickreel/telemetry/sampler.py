"""The sampler's process: `python -m brickreel.telemetry.sampler ORDER`, started and ended by the recorder.

Writes an Arrow IPC stream in small batches: whatever was written before a kill can be read. Ends when its standard
input closes, that is when the stage ends or dies.
"""

import fcntl
import json
import os
import platform
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from brickreel.telemetry import columns
from brickreel.telemetry.host import Host
from brickreel.telemetry.infiniband import Ports

BATCH_S = 10.0
"""At most so much is lost when the node dies. Smaller batches cost disk: each repeats some kilobytes of layout."""
FIRST_BATCH_S = 2.0


class Stream:
    """Rows of all devices, written in batches."""

    def __init__(self, path: Path, facts: dict[str, str]) -> None:
        import pyarrow as pa

        self.pa = pa
        fields = [("time_s", pa.float64()), ("mono_s", pa.float64()), ("device", pa.string())]
        fields += [(name, pa.float64()) for name in columns.NAMES]
        fields += [("event", pa.string()), ("detail", pa.string())]
        metadata = {"brickreel.table": "telemetry", "brickreel.version": "1", **facts}
        self.schema = pa.schema(fields, metadata=metadata)
        self.sink = path.open("wb")
        # Held until the end, also of a suspended process: a report finishes only streams that it can lock.
        with suppress(OSError):
            fcntl.flock(self.sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        self.writer = pa.ipc.new_stream(self.sink, self.schema, options=options)
        self.rows: list[dict[str, Any]] = []

    def add(self, time_s: float, mono_s: float, device: str, values: dict[str, Any]) -> None:
        """Take one row; what it does not name is null."""
        self.rows.append({"time_s": time_s, "mono_s": mono_s, "device": device, **values})

    def flush(self) -> None:
        """Hand the rows to the kernel as one batch."""
        if self.rows:
            lists = {name: [row.get(name) for row in self.rows] for name in self.schema.names}
            arrays = [self.pa.array(lists[field.name], field.type) for field in self.schema]
            self.writer.write_batch(self.pa.record_batch(arrays, schema=self.schema))
            self.sink.flush()
            self.rows = []

    def close(self) -> None:
        """Write what is left and the end mark."""
        self.flush()
        self.writer.close()
        self.sink.close()


def run(path: Path, pid: int, root: int, period_s: float, facts: dict[str, str]) -> None:
    """Sample every `period_s` seconds until standard input closes or the stage is gone, and once more at the end."""
    warned: list[int] = []
    # Slurm announces a kill with SIGTERM to every process, the stage among them: from then on no row waits in memory,
    # and sampling goes on while the stage writes its last checkpoint.
    signal.signal(signal.SIGTERM, lambda number, frame: warned.append(number))
    host, ports = Host(root), Ports()
    first = (time.time(), time.monotonic(), host.sample())
    gpus = _open_gpus()
    stream = Stream(path, {**facts, "period_s": str(period_s), "pid": str(pid), **_machine()})
    stream.add(first[0], first[1], "", first[2])
    due, flush_at = first[1] + period_s, first[1] + FIRST_BATCH_S
    ended = False
    while not ended:
        ended = _parent_gone(pid, max(due - time.monotonic(), 0))
        now, mono = time.time(), time.monotonic()
        stream.add(now, mono, "", host.sample())
        for device, row in {**ports.sample(), **gpus.sample()}.items():
            stream.add(now, mono, device, row)
        for event in gpus.events():
            stream.add(now, mono, event.device, {"event": event.event, "detail": event.detail})
        if warned or mono >= flush_at:
            stream.flush()
            flush_at = mono + BATCH_S
        # A sampler that was held up skips ticks instead of catching up: the coverage shows it.
        due = max(due + period_s, mono + period_s / 2)
    stream.close()


def _open_gpus() -> Any:
    from brickreel.telemetry.gpu import Gpus

    return Gpus()


def _parent_gone(pid: int, wait_s: float) -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], wait_s)
    # The pipe alone is not enough: a child of the stage may have inherited its other end.
    return bool(readable) or os.getppid() != pid


def _machine() -> dict[str, str]:
    return {"kernel": platform.release(), "python": platform.python_version(), "host": platform.node()}


def main() -> None:
    """Read the order from the command line and follow it."""
    for interrupt in (signal.SIGINT, signal.SIGHUP):
        signal.signal(interrupt, signal.SIG_IGN)
    order = json.loads(sys.argv[1])
    path = Path(order["path"])
    run(path, order["pid"], order["root"], order["period_s"], order["facts"])
    from brickreel.telemetry import recordings

    recordings.finish(path)
    # An empty error file says nothing.
    errors = path.with_suffix(".err")
    if errors.exists() and errors.stat().st_size == 0:
        errors.unlink()


if __name__ == "__main__":
    main()
