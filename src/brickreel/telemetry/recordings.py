"""Recordings as arrays: reads what the sampler wrote, finished or cut off; rates, means and buckets of them."""

import fcntl
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from brickreel import files
from brickreel.telemetry import columns

Array = NDArray[np.float64]

DEAD_AFTER_S = 600.0
FIXED = ("time_s", "mono_s", "device", "event", "detail")


@dataclass(frozen=True)
class Event:
    """Something that the sampler noted."""

    time_s: float
    device: str
    event: str
    detail: str


@dataclass(frozen=True)
class Recording:
    """One node during one attempt of one part of a stage."""

    stage: str
    part: str
    attempt: int
    node: str
    path: Path
    facts: dict[str, str]
    devices: dict[str, dict[str, Array]] = field(repr=False)
    """Device ("" is the host) -> column -> values [samples]; NaN is not measured. Holds `time_s` and `mono_s` too."""
    events: list[Event] = field(repr=False)

    @property
    def period_s(self) -> float:
        """Seconds between samples, as ordered."""
        return float(self.facts.get("period_s", 1.0))

    @property
    def gpus(self) -> list[str]:
        """Names of the GPU devices, in their order."""
        return sorted((name for name in self.devices if name.startswith("gpu")), key=lambda name: int(name[3:]))

    @property
    def ports(self) -> list[str]:
        """Names of the InfiniBand ports."""
        return sorted(name for name in self.devices if "/" in name)

    @property
    def span_s(self) -> tuple[float, float]:
        """Unix time of the first and the last sample of the host."""
        times = self.devices[""]["time_s"]
        return float(times[0]), float(times[-1])


def paths(folder: Path) -> list[Path]:
    """All recordings below `logs/telemetry`, finished files before the streams that they replace."""
    found: dict[tuple[Path, str], Path] = {}
    for suffix in ("*.arrow", "*.parquet"):
        for path in sorted(folder.glob(f"*/*/{suffix}")):
            if not path.name.startswith("."):
                found[(path.parent, path.stem)] = path
    return sorted(found.values())


def read(path: Path) -> Recording:
    """Read one recording. Raises ValueError with a sentence when not a single sample of the host is in it."""
    attempt, _, node = path.stem.partition("-")
    if not attempt.isdecimal():
        raise ValueError(f"{path.name} is not named ATTEMPT-NODE")
    try:
        facts, devices, events = _read_finished(path) if path.suffix == ".parquet" else _read_running(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"nothing was written before the recorder ended ({error})") from None
    except KeyError as error:
        raise ValueError(f"the file is none of this recorder's: it has no {error}") from None
    if "" not in devices or not len(devices[""]["time_s"]):
        raise ValueError("no sample was written before the recorder ended")
    part = path.parent
    # Only the facts have the name as Slurm and the logs write it: a hyphen in it divides a file's name.
    return Recording(part.parent.name, part.name, int(attempt), facts.get("node") or node, path, facts, devices, events)


Content = tuple[dict[str, str], dict[str, dict[str, Array]], list[Event]]


def _read_running(path: Path) -> Content:
    """A stream: rows of all devices follow each other."""
    table = read_stream(path)
    devices = {}
    for device in pc.unique(table["device"]).to_pylist():
        own = pc.and_(pc.equal(table["device"], device), pc.is_null(table["event"]))
        rows = table.select(list(_columns_of(device))).filter(own)
        if rows.num_rows:
            devices[device] = _arrays(rows, device, {})
    return _facts(table.schema), devices, _events(table.filter(table["event"].is_valid()), 1.0)


def _read_finished(path: Path) -> Content:
    """A finished file: one row group for each device, and one for the events in front."""
    with pq.ParquetFile(path) as file:
        facts = _facts(file.schema_arrow)
        groups, quanta = json.loads(facts["groups"]), json.loads(facts["quanta"])
        events = _events(file.read_row_group(0, columns=list(FIXED)), quanta["time_s"])
        there = set(file.schema_arrow.names)
        devices = {
            device: _arrays(
                file.read_row_group(index + 1, columns=[name for name in _columns_of(device) if name in there]),
                device,
                quanta,
            )
            for index, device in enumerate(groups)
        }
    return facts, devices, events


def _facts(schema: pa.Schema) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}


def _events(rows: pa.Table, time_quantum: float) -> list[Event]:
    return [
        Event(row["time_s"] * time_quantum, row["device"], row["event"], row["detail"] or "")
        for row in rows.select(list(FIXED)).to_pylist()
    ]


def _arrays(rows: pa.Table, device: str, quanta: dict[str, float]) -> dict[str, Array]:
    """The device's columns; NaN for what was not measured, also where the file has no such column."""
    values = {name: _floats(rows[name], quanta.get(name)) for name in rows.column_names}
    return {name: values.get(name, np.full(rows.num_rows, np.nan)) for name in _columns_of(device)}


def read_stream(path: Path, names: Sequence[str] | None = None) -> pa.Table:
    """All whole batches of a stream, whether or not it was closed; only the named columns when given."""
    batches: list[pa.RecordBatch] = []
    with pa.memory_map(str(path)) as source:
        with pa.ipc.open_stream(source) as reader:
            schema = reader.schema
        source.seek(0)
        chosen = None if names is None else [schema.get_field_index(name) for name in names]
        with pa.ipc.open_stream(source, options=pa.ipc.IpcReadOptions(included_fields=chosen)) as reader:
            while True:
                try:
                    batches.append(reader.read_next_batch())
                except (StopIteration, pa.ArrowInvalid, OSError):
                    break
            return pa.Table.from_batches(batches, schema=reader.schema)


def span_of(path: Path) -> tuple[float, float, float]:
    """Unix time of a recording's first and last row, and its period in seconds, without reading the rest of it.

    Raises as `read` does.
    """
    try:
        if path.suffix == ".parquet":
            facts = pq.read_schema(path).metadata or {}
            return float(facts[b"first_s"]), float(facts[b"last_s"]), float(facts.get(b"period_s", 1.0))
        rows = read_stream(path, ["time_s"])
        times, facts = rows["time_s"], rows.schema.metadata or {}
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"nothing was written before the recorder ended ({error})") from None
    if not len(times):
        raise ValueError("no sample was written before the recorder ended")
    return times[0].as_py(), times[-1].as_py(), float(facts.get(b"period_s", 1.0))


def _columns_of(device: str) -> tuple[str, ...]:
    own = columns.HOST if device == "" else columns.GPU if device.startswith("gpu") else columns.INFINIBAND
    return ("time_s", "mono_s", *own)


def _floats(column: pa.ChunkedArray, quantum: float | None) -> Array:
    if column.null_count == len(column):
        return np.full(len(column), np.nan)
    values = column.to_numpy().astype(np.float64, copy=False)
    return values if quantum is None else values * quantum


def ended(path: Path) -> bool:
    """Whether a recording has nobody left who writes it: it is finished, or its recorder was killed.

    A stream grows every ten seconds, and its recorder holds a lock on it: of a suspended job it is silent and locked.
    Where the file system has no locks, or the file is another user's, a stream never counts as ended.
    """
    if path.suffix == ".parquet":
        return True
    try:
        if time.time() - path.stat().st_mtime < DEAD_AFTER_S:
            return False
        # Over NFS an exclusive lock needs a file that is open for writing.
        with path.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


def settled(path: Path) -> Path:
    """The finished file of a stream whose recorder was killed; the same path while it runs, or where it is broken."""
    try:
        return finish(path) if path.suffix == ".arrow" and ended(path) else path
    except (OSError, ValueError, pa.ArrowInvalid):
        return path


def finish(path: Path) -> Path:
    """Rewrite a stream as a quantised Parquet file, and remove the stream. Returns the new path.

    Every column becomes whole multiples of its quantum, delta-encoded, and every device a row group of its own: a
    tenth of the stream's size, and read without touching the other devices' columns.
    """
    table = read_stream(path)
    quanta: dict[str, float] = {"time_s": 1e-3, "mono_s": 1e-3}
    quanta |= {column.name: column.quantum for column in columns.COLUMNS}
    kept = [name for name in table.column_names if name not in quanta or table[name].null_count < table.num_rows]
    is_sample, names = table["event"].is_null(), sorted(pc.unique(table["device"]).to_pylist())
    parts = {name: table.filter(pc.and_(pc.equal(table["device"], name), is_sample)).select(kept) for name in names}
    parts = {name: rows for name, rows in parts.items() if rows.num_rows}
    times = table["time_s"]
    facts = {"quanta": json.dumps(quanta), "groups": json.dumps(list(parts))}
    facts |= {"first_s": str(times[0]), "last_s": str(times[-1])} if len(times) else {}
    events = _quantised(table.filter(table["event"].is_valid()).select(kept), quanta)
    schema = events.schema.with_metadata(_facts(table.schema) | facts)
    target = path.with_suffix(".parquet")
    with (
        files.replacing(target) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            use_dictionary=[name for name in kept if name not in quanta],
            column_encoding={name: "DELTA_BINARY_PACKED" for name in kept if name in quanta},
        ) as writer,
    ):
        writer.write_table(events, row_group_size=max(events.num_rows, 1))
        for rows in parts.values():
            writer.write_table(_quantised(rows, quanta), row_group_size=rows.num_rows)
    path.unlink(missing_ok=True)
    return target


def _quantised(rows: pa.Table, quanta: dict[str, float]) -> pa.Table:
    arrays = []
    for name in rows.column_names:
        column = rows[name]
        if name in quanta:
            missing = ~np.isfinite(column.cast(pa.float64()).to_numpy())
            whole = np.rint(np.where(missing, 0.0, column.to_numpy()) / quanta[name])
            column = pa.array(whole.astype(np.int64), mask=missing)
        arrays.append(column)
    return pa.table(arrays, names=rows.column_names)


def rate(values: Array, mono_s: Array) -> tuple[Array, Array]:
    """A counter's increase per second in each interval, and the intervals' lengths [samples - 1].

    A counter that falls was reset: that interval is NaN. Intervals without both readings are NaN.
    """
    lengths = np.diff(mono_s)
    steps = np.diff(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = np.where((steps >= 0) & (lengths > 0), steps / lengths, np.nan)
    return rates, lengths


def increase(values: Array) -> float | None:
    """How far a counter rose over all readings; falls (resets) count as nothing. None without two readings."""
    seen = values[~np.isnan(values)]
    if len(seen) < 2:
        return None
    steps = np.diff(seen)
    return float(steps[steps > 0].sum())


def mean(values: Array) -> float | None:
    """The mean of what was measured; None when nothing was."""
    seen = values[~np.isnan(values)]
    return float(seen.mean()) if len(seen) else None


def highest(values: Array) -> float | None:
    """The highest reading; None when nothing was measured."""
    seen = values[~np.isnan(values)]
    return float(seen.max()) if len(seen) else None


def lowest(values: Array) -> float | None:
    """The lowest reading; None when nothing was measured."""
    seen = values[~np.isnan(values)]
    return float(seen.min()) if len(seen) else None


def percentile(values: Array, share: float) -> float | None:
    """A percentile of what was measured; None when nothing was."""
    seen = values[~np.isnan(values)]
    return float(np.percentile(seen, share)) if len(seen) else None


def bucket_means(times: Array, values: Array, edges: Array) -> Array:
    """Means of the values between edges [n + 1] -> [n]; NaN where there are none.

    Means stay exact, which point-picking methods such as LTTB do not give.
    """
    count = len(edges) - 1
    place = np.searchsorted(edges, times, side="right") - 1
    good = (place >= 0) & (place < count) & ~np.isnan(values)
    number = np.bincount(place[good], minlength=count)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.bincount(place[good], weights=values[good], minlength=count) / number


def column_quantiles(values: Array, shares: Sequence[float]) -> list[Array]:
    """Quantiles of each column's known values [rows, columns] -> one [columns] per share; NaN where there are none.

    As numpy's nanquantile, which goes through the columns one by one as soon as one value is missing.
    """
    # Sorting puts NaN last.
    ordered, last = np.sort(values, axis=0), np.maximum((~np.isnan(values)).sum(axis=0) - 1, 0)
    columns, result = np.arange(values.shape[1]), []
    for share in shares:
        place = share * last
        below = np.floor(place).astype(int)
        low, high = ordered[below, columns], ordered[np.minimum(below + 1, last), columns]
        result.append(low + (place - below) * (high - low))
    return result
