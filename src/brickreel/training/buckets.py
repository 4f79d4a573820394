"""The plan of a run's data: which clips stand in which bucket, and how many micro-batches an epoch has.

Rules, in this order. A bucket with fewer clips than one micro-batch is *merged* into the next shorter length of the
same shape, where the run has one: its clips are shown with their first frames. One that stays too small is *repeated*
within the epoch until a micro-batch is full, at most `MOST_REPEATS` times. The last micro-batch of a bucket may be
short; since gradients are weighted by sample this wastes nothing. Under the origin's assignment there is no merging or
repeating, and the remainder is dropped from the shuffled bucket, so that each epoch drops other clips.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

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


def rows_of(index: pa.Table, data: RunData) -> list[dict[str, Any]]:
    """The index's rows that concern a run's data, in the order that everything counts on."""
    key = data_key(data)
    rows = [row for row in index.to_pylist() if key in (row["data_keys"] or ())]
    return sorted(rows, key=lambda row: (row["bucket"] or "", row["clip_id"], row["kind"], row["sample_id"] or ""))


def fingerprint(rows: list[dict[str, Any]]) -> str:
    """Hash of the training samples, contents included (`crc32`), whatever shards they came from."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        if row["outcome"] == "ok" and row["split"] == "train":
            digest.update(json.dumps([row[column] for column in _FINGERPRINT]).encode())
    return digest.hexdigest()


def items_of(rows: list[dict[str, Any]], split: str) -> dict[str, list[list[dict[str, Any]]]]:
    """Bucket of the index -> its clips -> each clip's samples, one per offset and crop."""
    items: dict[str, dict[tuple[str, str], list[dict[str, Any]]]] = defaultdict(dict)
    for row in rows:
        if row["outcome"] == "ok" and row["split"] == split:
            items[row["bucket"]].setdefault((row["clip_id"], row["kind"]), []).append(row)
    return {bucket: list(clips.values()) for bucket, clips in sorted(items.items())}


def plan_buckets(index: pa.Table, run: Run) -> BucketPlan:
    """Plan a run's buckets from `encode`'s index.

    Raises ValueError when the run would have nothing to show.
    """
    rows = rows_of(index, run.data)
    found = items_of(rows, "train")
    dropped: Counter[str] = Counter()
    for row in rows:
        if row["outcome"] != "ok":
            dropped[row["reason"] or "unknown"] += 1
    plain = [_bucket(name, clips, run) for name, clips in found.items()]
    buckets, notes = (plain, []) if run.data.assignment == "opensora-1.1" else _feed(plain)
    remainder = sum(bucket.slots - bucket.shown for bucket in buckets)
    if remainder:
        dropped["remainder"] += remainder
    buckets = [bucket for bucket in buckets if bucket.micro_batches]
    if not buckets:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "the dataset is empty"
        raise ValueError(f"no training clip is left for this run's buckets ({reasons}): shorten them or add clips")
    heldout = sum(len(clips) for clips in items_of(rows, "heldout").values())
    used = sum(bucket.items for bucket in buckets)
    return BucketPlan(tuple(buckets), fingerprint(rows), used, heldout, dict(sorted(dropped.items())), tuple(notes))


def _bucket(name: str, clips: list[list[dict[str, Any]]], run: Run) -> Bucket:
    row = clips[0][0]
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
