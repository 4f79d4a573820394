"""Choose clips in pose time. Table work only: a changed threshold never decodes a film again."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from brickreel import files, tables
from brickreel.config import Config, Curate
from brickreel.films import audit, candidates, duplicates, filters, withdrawn
from brickreel.progress import Bar
from brickreel.stages.analyze import OUTPUT as SIGNALS
from brickreel.stages.ingest import OUTPUT as SOURCES

logger = logging.getLogger("brickreel")

OUTPUT = Path("results/curate/clips.parquet")
AUDIT = Path("results/curate/audit.html")
# Rows of signals that are held at a time.
BATCH = 1_500_000
READ = (
    "film_id", "frame", "time_s", "transition", "new_pose", "crop", "phash",
    *candidates.MEANS, *candidates.INNER_MEANS,
)  # fmt: skip
_FACTS = ("path", "title", "channel", "url", "licence", "rights_holder")


def run(config: Config) -> None:
    """Write results/curate/clips.parquet and audit.html. Raises ValueError when no clip passes."""
    settings = config.curate
    listed = tables.read("sources", SOURCES)
    films = listed.filter(pc.equal(listed["outcome"], "ok"))
    if not films.num_rows:
        raise ValueError(f"no film in {SOURCES} can be used: its column `reason` says why")
    parts = tables.files_of(SIGNALS)
    if not parts:
        raise FileNotFoundError(f"{SIGNALS} holds no signals: run analyze first")
    clips, failed = _candidates(parts, films, settings)
    clips = _judge(clips, films, settings)
    clips = tables.write("clips", OUTPUT, clips)
    audit.write(AUDIT, clips, _unused(listed, failed), parts, settings)
    _report(clips)


def _unused(listed: pa.Table, failed: Mapping[str, str]) -> dict[str, str]:
    """Films that ingest or analyze could not use, by the name in the user's list, with the reason."""
    columns = ("path", "url", "film_id", "outcome", "reason")
    rows = zip(*(listed[name].to_pylist() for name in columns), strict=True)
    reasons = (
        (path or url, failed.get(film, "") if outcome == "ok" else why) for path, url, film, outcome, why in rows
    )
    return {name: reason for name, reason in reasons if reason}


def _candidates(parts: Sequence[Path], films: pa.Table, settings: Curate) -> tuple[list[Any], dict[str, str]]:
    """Clips of every batch of films with their reasons, and the films that could not be analysed."""
    order = {film_id: place for place, film_id in enumerate(films["film_id"].to_pylist())}
    facts = candidates.Films(
        *(films[name].to_numpy(zero_copy_only=False) for name in ("fps", "variable_rate", "width", "height"))
    )
    found, failed = [], {}
    with Bar("curate", len(order), "films") as bar:
        for batch in _batches(parts):
            broken = pc.less(batch["frame"], 0)
            for row in batch.filter(broken).select(["film_id", "reason"]).to_pylist():
                failed[row["film_id"]] = row["reason"]
            frames = _frames(batch.filter(pc.invert(broken)), order)
            clips = candidates.find(frames, facts, settings)
            found.append((clips, filters.reasons(clips, settings)))
            bar.advance(len(np.unique(frames.film)))
    return found, failed


def _batches(parts: Sequence[Path]) -> Iterator[pa.Table]:
    """Signals of whole films, at most BATCH rows at a time unless one film has more."""
    for part in parts:
        with pq.ParquetFile(part) as source:
            tables.check_schema("signals", source.schema_arrow, part)
            groups: list[int] = []
            rows = 0
            for group in range(source.num_row_groups):
                size = source.metadata.row_group(group).num_rows
                if groups and rows + size > BATCH:
                    yield source.read_row_groups(groups, columns=[*READ, "reason"])
                    groups, rows = [], 0
                groups.append(group)
                rows += size
            if groups:
                yield source.read_row_groups(groups, columns=[*READ, "reason"])


def _frames(batch: pa.Table, order: Mapping[str, int]) -> candidates.Frames:
    ids = batch["film_id"].combine_chunks().dictionary_encode()
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    known = np.array([order.get(film_id, -1) for film_id in ids.dictionary.to_pylist()], np.int64)
    film = known[ids.indices.to_numpy()] if batch.num_rows else np.zeros(0, np.int64)
    keep = film >= 0
    if not keep.all():
        # Signals of films that are no longer listed.
        batch, film = batch.filter(pa.array(keep)), film[keep]
    transition = batch["transition"]
    return candidates.Frames(
        film=film,
        frame=batch["frame"].to_numpy(),
        time_s=batch["time_s"].to_numpy(),
        blend=pc.is_in(transition, pa.array(["dissolve", "fade"])).to_numpy(),
        cut=pc.equal(transition, "cut").to_numpy(),
        new_pose=batch["new_pose"].to_numpy(),
        crop=_quadruples(batch["crop"]),
        phash=batch["phash"].to_numpy(),
        values={name: batch[name].to_numpy() for name in (*candidates.MEANS, *candidates.INNER_MEANS)},
    )


def _quadruples(column: pa.ChunkedArray) -> np.ndarray:
    parts = [chunk.flatten().to_numpy().reshape(-1, 4) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.zeros((0, 4), np.int32)


def _judge(found: list[Any], films: pa.Table, settings: Curate) -> pa.Table:
    """The table of all clips with outcome, reason and split."""
    film = np.concatenate([clips.film for clips, _ in found] or [np.zeros(0, np.int64)])
    reason = np.concatenate([reasons for _, reasons in found] or [np.zeros(0, "<U16")]).astype("<U16")
    gone = withdrawn.film_ids() | set(settings.withdrawn)
    out = np.array([film_id in gone for film_id in films["film_id"].to_pylist()], bool)
    reason[(reason == "") & out[film]] = filters.WITHDRAWN
    original = _mark_duplicates(found, film, reason, settings)
    table = pa.concat_tables([_table(clips, films) for clips, _ in found]) if found else None
    if table is None:
        raise ValueError("no film has any frame: results/analyze says why")
    # Seventy million ids are more bytes than the offsets of ordinary strings can count.
    ids = table["clip_id"].cast(pa.large_string()).combine_chunks()
    good = reason == ""
    heldout = _heldout(films["film_id"].to_pylist(), film[good], settings)
    split = np.where(np.isin(film, heldout), "heldout", "train")
    columns = {
        "duplicate_of": ids.take(pa.array(np.maximum(original, 0), mask=original < 0)).cast(pa.string()),
        "split": pa.array(split, mask=~good),
        "outcome": pa.array(np.where(good, "ok", "dropped")),
        "reason": pa.array(reason),
    }
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table


def _mark_duplicates(found: list[Any], film: np.ndarray, reason: np.ndarray, settings: Curate) -> np.ndarray:
    """[C] index of the clip that is kept instead, -1 for none; sets the reason in place."""
    original = np.full(len(film), -1, np.int64)
    good = np.flatnonzero(reason == "")
    if len(good) < 2:
        return original
    hashes = np.concatenate([clips.hashes for clips, _ in found])[good]
    poses = np.concatenate([clips.poses for clips, _ in found])[good]
    near = duplicates.pairs(hashes, poses, film[good], settings.duplicate_bits)
    # Of two the longer stays, of equally long ones that of the film listed first.
    rank = np.empty(len(good), np.int64)
    rank[np.lexsort((good, film[good], -poses))] = np.arange(len(good))
    for clip, kept in duplicates.originals(near, rank).items():
        original[good[clip]] = good[kept]
        reason[good[clip]] = filters.DUPLICATE
    return original


def _heldout(film_ids: Sequence[str], film_of_clip: np.ndarray, settings: Curate) -> np.ndarray:
    """Indices of the held-out films: about the share, by a hash of seed and id; new films do not reshuffle old ones.

    One film at least is held out and one at least is not: while there are few, that one may change with new ones.
    """
    films = np.unique(film_of_clip)
    if len(films) < 2 or not settings.heldout_share:
        return np.zeros(0, np.int64)
    draw = np.array([files.draw_of(f"{settings.seed}:{film_ids[film]}") for film in films])
    number = int((draw < settings.heldout_share).sum())
    return films[np.argsort(draw, kind="stable")[: min(len(films) - 1, max(1, number))]]


def _table(clips: candidates.Clips, films: pa.Table) -> pa.Table:
    """Everything about candidates but outcome, reason, split and duplicates."""
    place = pa.array(clips.film)
    film_id = films["film_id"].combine_chunks().take(place)
    numbers = [pc.utf8_lpad(pa.array(values).cast(pa.string()), 6, "0") for values in (clips.start, clips.end)]
    offsets = pa.array(clips.offsets.astype(np.int32))
    columns: dict[str, Any] = {
        "clip_id": pc.binary_join_element_wise(film_id, *numbers, "-"),
        "film_id": film_id,
        "start_frame": clips.start,
        "end_frame": clips.end,
        "fps": films["fps"].combine_chunks().take(place),
        "pose_frames": pa.ListArray.from_arrays(offsets, pa.array(clips.pose_frames)),
        "holds": pa.ListArray.from_arrays(offsets, pa.array(clips.holds.astype(np.int32))),
        "pose_rate": clips.pose_rate,
        "cadence": pa.array(clips.cadence),
        "crop": pa.FixedSizeListArray.from_arrays(pa.array(clips.crop.ravel()), 4),
        "still_frame": clips.still,
    }
    for name, values in clips.values.items():
        columns["change" if name == "hold_score" else name] = pa.array(values.astype(np.float32))
    for name in _FACTS:
        columns[name] = films[name].combine_chunks().take(place)
    return pa.table(columns)


def _report(clips: pa.Table) -> None:
    counts = clips.group_by(["outcome", "reason"]).aggregate([("clip_id", "count")]).to_pylist()
    for row in sorted(counts, key=lambda row: -row["clip_id_count"]):
        logger.info("curate: %d clips %s %s", row["clip_id_count"], row["outcome"], row["reason"])
    if not any(row["outcome"] == "ok" for row in counts):
        raise ValueError(f"no clip passes: {AUDIT} shows why each was dropped, `curate:` holds the thresholds")
