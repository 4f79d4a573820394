"""The plan of a run's data: which clips stand in which bucket, and how many micro-batches an epoch has.

Rules, in this order. A bucket with fewer clips than one micro-batch is *merged* into the next shorter length of the
same shape, where the run has one: its clips are shown with their first frames. One that stays too small is *repeated*
within the epoch until a micro-batch is full, at most `MOST_REPEATS` times. The last micro-batch of a bucket may be
short; since gradients are weighted by sample this wastes nothing. Under the origin's assignment there is no merging or
repeating, and the remainder is dropped from the shuffled bucket, so that each epoch drops other clips.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from brickreel import tables
from brickreel.config import Run, RunData

MOST_REPEATS = 4
_FINGERPRINT = (
    "sample_id",
    "bucket",
    "frames",
    "height",
    "width",
    "pose_rate",
    "offset",
    "crop",
    "text_tokens",
    "crc32",
)
VERSION = 1
_ORDER = ("bucket", "clip_id", "kind", "sample_id")
_REPEATED = frozenset({"bucket", "kind", "split", "file", "text_file", "outcome", "reason"})
_READ = pa.schema(
    field.remove_metadata() for field in tables.SCHEMAS["encode_index"] if field.name not in ("data_keys", "film_id")
)
_NEEDED = [*_READ.names, "data_keys"]
_WORDS = pa.dictionary(pa.int32(), pa.large_string())
_PACKED = pa.schema(
    field.with_type(_WORDS if field.name in _REPEATED else pa.large_string())
    if pa.types.is_string(field.type)
    else field
    for field in _READ
)


@dataclass(frozen=True)
class Bucket:
    """Clips of one shape. `height` and `width` in pixels, `items` in clips."""

    name: str
    frames: int
    height: int
    width: int
    items: int
    batch: int
    repeats: int = 1
    drop_last: bool = False
    sources: tuple[str, ...] = ()
    """Buckets of the index whose clips are shown here; more than its own name after a merge."""

    @property
    def slots(self) -> int:
        """Showings per epoch, before a remainder is dropped."""
        return self.items * self.repeats

    @property
    def micro_batches(self) -> int:
        """Micro-batches per epoch."""
        return self.slots // self.batch if self.drop_last else -(-self.slots // self.batch)

    @property
    def shown(self) -> int:
        """Showings per epoch."""
        return self.micro_batches * self.batch if self.drop_last else self.slots


@dataclass(frozen=True)
class BucketPlan:
    """What an epoch is made of."""

    buckets: tuple[Bucket, ...]
    fingerprint: str
    """Hash of every training sample: another dataset gives another order."""
    used: int
    """Training clips and stills that stand in a bucket."""
    heldout: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason -> clips and stills that are not shown."""
    notes: tuple[str, ...] = ()
    """Merges and repeats, as sentences."""

    @property
    def micro_batches(self) -> int:
        """Micro-batches per epoch."""
        return sum(bucket.micro_batches for bucket in self.buckets)

    @property
    def samples(self) -> int:
        """Showings per epoch."""
        return sum(bucket.shown for bucket in self.buckets)

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `from_json` reads it back."""
        rows = [asdict(bucket) | {"micro_batches": bucket.micro_batches} for bucket in self.buckets]
        return {"version": VERSION, **asdict(self), "buckets": rows, "dropped": dict(self.dropped)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "BucketPlan":
        """Read back. Raises ValueError when it is not a plan of this version."""
        try:
            if value["version"] != VERSION:
                raise ValueError(f"the bucket plan has version {value['version']}: run the plan stage again")
            buckets = []
            for row in value["buckets"]:
                known = {key: row[key] for key in row if key != "micro_batches"}
                buckets.append(Bucket(**known | {"sources": tuple(row["sources"])}))
            rest = {key: value[key] for key in ("fingerprint", "used", "heldout")}
            return cls(tuple(buckets), **rest, dropped=dict(value["dropped"]), notes=tuple(value["notes"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a bucket plan: {error}: run the plan stage again") from error


def data_key(data: RunData) -> str:
    """Names what a run is shown, batch sizes apart; `encode` notes it at each sample that the run uses."""
    value = data.model_dump(mode="json")
    value["buckets"] = {
        name: {frames: share for frames, (share, _) in sorted(row.items())} for name, row in data.buckets.items()
    }
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=6).hexdigest()


def read_index(path: Path, where: Any = None) -> Iterator[pa.RecordBatch]:
    """What `rows_of` needs of `encode`'s index, batch by batch; `where` as for `tables.batches`."""
    return tables.batches("encode_index", path, _NEEDED, where)


def rows_of(index: pa.Table | Iterable[pa.RecordBatch], data: RunData) -> pa.Table:
    """The index's rows that concern a run's data, in the order that everything counts on.

    Columns that repeat a few words are dictionaries: what stays is less than two hundred bytes per sample.
    """
    batches = index.select(_NEEDED).to_batches() if isinstance(index, pa.Table) else index
    key = data_key(data)
    parts = (_packed(concerning(batch, key, _READ.names)) for batch in batches)
    rows = pa.Table.from_batches(parts, _PACKED).unify_dictionaries()
    words = pa.table({name: rows[name].cast(pa.large_string()) for name in _ORDER})
    return rows.take(pc.sort_indices(words, [(name, "ascending") for name in _ORDER]))


def _packed(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [
        column.cast(pa.large_string()).dictionary_encode() if field.name in _REPEATED else column.cast(field.type)
        for column, field in zip(batch.columns, _PACKED, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_PACKED)


def concerning(batch: pa.RecordBatch, key: str, columns: Sequence[str]) -> pa.RecordBatch:
    """Columns of the index's rows that concern the data settings of this `data_key`."""
    keys = batch["data_keys"]
    named = pc.list_parent_indices(keys).filter(pc.equal(pc.list_flatten(keys), key))
    return batch.select(columns).take(named)


@dataclass(frozen=True)
class Split:
    """The samples of one split in their order, and which of them show the same clip."""

    rows: pa.Table
    clips: Mapping[str, NDArray[np.int64]]
    """Bucket of the index -> [clips, 2]: the row of a clip's first sample, and how many there are of it."""

    def __len__(self) -> int:
        return sum(map(len, self.clips.values()))


def split_of(rows: pa.Table, split: str) -> Split:
    """`train` or `heldout` of what `rows_of` found."""
    rows = rows.filter(pc.and_(pc.equal(rows["outcome"], "ok"), pc.equal(rows["split"], split)))
    if not rows.num_rows:
        return Split(rows, {})
    new_bucket = _changes(rows["bucket"])
    first = np.flatnonzero(new_bucket | _changes(rows["clip_id"]) | _changes(rows["kind"]))
    clips = np.stack([first, np.diff(first, append=rows.num_rows)], axis=1)
    begins = np.searchsorted(first, np.flatnonzero(new_bucket))
    names = rows["bucket"].take(first[begins]).to_pylist()
    return Split(rows, dict(zip(names, np.split(clips, begins[1:]), strict=True)))


def _changes(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Where a value differs from the one before it; the first one does."""
    values = column.cast(pa.large_string()) if pa.types.is_dictionary(column.type) else column
    found = np.ones(len(values), bool)
    found[1:] = pc.not_equal(values.slice(1), values.slice(0, len(values) - 1)).to_numpy()
    return found


def fingerprint(rows: pa.Table) -> str:
    """Hash of samples, contents included (`crc32`), whatever shards they came from."""
    digest = hashlib.blake2b(digest_size=16)
    for name in _FINGERPRINT:
        values = rows[name]
        if pa.types.is_dictionary(values.type):
            values = values.cast(pa.large_string())
        # One stream each, so that it does not matter where a column's chunks end.
        streams = [hashlib.blake2b(digest_size=16) for _ in range(3)]
        for chunk in values.chunks:
            for stream, data in zip(streams, _bytes(chunk), strict=True):
                stream.update(data)
        for stream in streams:
            digest.update(stream.digest())
    return digest.hexdigest()


def _bytes(values: pa.Array) -> tuple[Any, Any, Any]:
    """What an array holds: where it has values, their lengths if they are texts, and the values."""
    valid = values.is_valid().to_numpy(zero_copy_only=False).tobytes()
    if not pa.types.is_large_string(values.type):
        return valid, b"", values.fill_null(0).to_numpy().tobytes()
    texts = values.fill_null("")
    joined = pc.binary_join(pa.ListArray.from_arrays([0, len(texts)], texts), pa.scalar("", texts.type))
    return valid, pc.binary_length(texts).to_numpy().tobytes(), joined[0].as_buffer()


def plan_buckets(index: pa.Table | Iterable[pa.RecordBatch], run: Run) -> BucketPlan:
    """Plan a run's buckets from `encode`'s index.

    Raises ValueError when the run would have nothing to show.
    """
    rows = rows_of(index, run.data)
    train = split_of(rows, "train")
    lost = rows.filter(pc.not_equal(rows["outcome"], "ok"))["reason"].value_counts().to_pylist()
    dropped = Counter({entry["values"] or "unknown": entry["counts"] for entry in lost})
    plain = [_bucket(name, train, run) for name in train.clips]
    buckets, notes = (plain, []) if run.data.assignment == "opensora-1.1" else _feed(plain)
    remainder = sum(bucket.slots - bucket.shown for bucket in buckets)
    if remainder:
        dropped["remainder"] += remainder
    buckets = [bucket for bucket in buckets if bucket.micro_batches]
    if not buckets:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "the dataset is empty"
        raise ValueError(f"no training clip is left for this run's buckets ({reasons}): shorten them or add clips")
    heldout, used = len(split_of(rows, "heldout")), sum(bucket.items for bucket in buckets)
    made_of = fingerprint(train.rows)
    return BucketPlan(tuple(buckets), made_of, used, heldout, dict(sorted(dropped.items())), tuple(notes))


def _bucket(name: str, train: Split, run: Run) -> Bucket:
    clips = train.clips[name]
    row = train.rows.slice(int(clips[0, 0]), 1).to_pylist()[0]
    batch = run.data.buckets[name.split("-")[0]][row["frames"]][1]
    drop_last = run.data.assignment == "opensora-1.1"
    return Bucket(
        name, row["frames"], row["height"], row["width"], len(clips), batch, drop_last=drop_last, sources=(name,)
    )


def _feed(buckets: list[Bucket]) -> tuple[list[Bucket], list[str]]:
    """Merge and repeat starving buckets, from long to short, so that a merge can feed a bucket that starves itself."""
    notes: list[str] = []
    left = {bucket.name: bucket for bucket in sorted(buckets, key=lambda bucket: (-bucket.frames, bucket.name))}
    for name in list(left):
        bucket = left[name]
        if bucket.items >= bucket.batch:
            continue
        shorter = [
            other for other in left.values() if _shape(other) == _shape(bucket) and 1 < other.frames < bucket.frames
        ]
        if shorter:
            host = max(shorter, key=lambda other: other.frames)
            left[host.name] = _with(host, items=host.items + bucket.items, sources=host.sources + bucket.sources)
            del left[name]
            notes.append(f"{name} has {bucket.items} clips for micro-batches of {bucket.batch}: shown in {host.name}")
        else:
            repeats = min(MOST_REPEATS, -(-bucket.batch // bucket.items))
            left[name] = _with(bucket, repeats=repeats)
            times = f"each shown {repeats} times per epoch"
            notes.append(f"{name} has {bucket.items} clips for micro-batches of {bucket.batch}: {times}")
    return sorted(left.values(), key=lambda bucket: bucket.name), notes


def _shape(bucket: Bucket) -> tuple[int, int]:
    return bucket.height, bucket.width


def _with(bucket: Bucket, **changes: Any) -> Bucket:
    return Bucket(**(asdict(bucket) | changes))
