"""Read every signal off one decode pass per film, one part file per shard."""

import logging
import math
import os
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from brickreel import files, tables
from brickreel.cluster import exits
from brickreel.config import Analyze, Config
from brickreel.films import isolated, signals
from brickreel.progress import Bar
from brickreel.stages import Shard
from brickreel.stages.ingest import OUTPUT as SOURCES

logger = logging.getLogger("brickreel")

OUTPUT = Path("results/analyze")
# One part per film, joined into the shard's table at its end and kept: after an interruption, and when a film is added,
# only what is missing is decoded. It is a second copy, of about 260 bytes per frame or 2 MB for five minutes of film:
# a few hundredths of the film. The table cannot serve instead, since Snakemake removes it before the stage runs again.
# Readers that open the folder above as one table pass over names that begin with an underscore.
FINISHED = OUTPUT / "_films"


def run(config: Config, shard: Shard = Shard()) -> None:  # noqa: B008  (frozen)
    """Write results/analyze/{shard}.parquet. A film that fails has one row with its reason; where frames of a film
    cannot be decoded, the reason of its rows says how many can.

    Raises ValueError, with the table written, when more than `analyze.max_failed_share` of the shard's films failed,
    rounded up so that one damaged film does not stop a small shard, or when all failed and none is there to be opened;
    OSError when a film's file is out of reach for a reason that passes, or the disk is full.
    """
    films = tables.owned("sources", SOURCES, "film_id", shard.owns, where=pc.field("outcome") == "ok").to_pylist()
    settings = config.analyze
    total = sum(film["frames"] for film in films)
    parts: list[Path] = []
    failed: dict[str, str] = {}
    with Bar(f"analyze {shard.name}", total, "frames") as bar:
        for film in films:
            part, reason = _finished(film, settings, bar)
            parts.append(part)
            if reason:
                failed[film["path"]] = reason
    _join(parts, OUTPUT / f"{shard.name}.parquet")
    tables.remove_parts(OUTPUT, shard.count)
    _tidy(shard, set(parts))
    logger.info("analyze %s: %d films, %d failed", shard.name, len(films), len(failed))
    _check(failed, len(films), settings)


def _check(failed: Mapping[str, str], count: int, settings: Analyze) -> None:
    """Raise ValueError when so many of `count` films failed that the cause is hardly the films."""
    away = len(failed) == count and not any(os.access(path, os.R_OK) for path in failed)
    if failed and (away or len(failed) > math.ceil(settings.max_failed_share * count)):
        path, reason = next(iter(failed.items()))
        rule = "and none is there to be opened" if away else "more than `analyze.max_failed_share` allows"
        raise ValueError(f"{len(failed)} of {count} films failed, {rule}; the first, {path}: {reason}")


def _finished(film: Mapping[str, Any], settings: Analyze, bar: Bar) -> tuple[Path, str]:
    """The table of one film, made now or by an attempt before, and why the film failed: empty when it did not."""
    part = FINISHED / f"{film['film_id']}-{settings.height}-{settings.transnet}.parquet"
    if _whole(part):
        bar.advance(film["frames"], note=Path(film["path"]).name)
        return part, ""
    try:
        found = _read(film, settings, bar)
        rows, reason = as_table(film["film_id"], found, _lost(film, len(found))), ""
    except ValueError as error:
        reason = exits.unopened(os.path.realpath(film["path"])) or str(error)
        logger.info("analyze: %s: failed: %s", film["path"], reason)
        rows = _failure(film["film_id"], reason)
    tables.write("signals", part, rows)
    return part, reason


def _whole(part: Path) -> bool:
    """Whether a film's table is there and good. A failure may have been the node's, and is not kept."""
    try:
        found = tables.read("signals", part, columns=["outcome"])
    except (FileNotFoundError, ValueError):
        # Not there, or of another version.
        return False
    return bool(pc.all(pc.equal(found["outcome"], "ok")).as_py())


def _read(film: Mapping[str, Any], settings: Analyze, bar: Bar) -> signals.Signals:
    limits = isolated.Limits(**settings.limits.model_dump())
    arguments = (str(Path(film["path"]).resolve()), settings.height, settings.transnet, settings.threads)
    seen = 0

    def watch(frames: int) -> None:
        nonlocal seen
        bar.advance(frames - seen, note=Path(film["path"]).name)
        seen = frames

    found: signals.Signals = isolated.call(signals.read, arguments, limits, watch)
    watch(film["frames"])
    return found


def _lost(film: Mapping[str, Any], decoded: int) -> str:
    """What is to be said of a film with damaged frames, which a player skips as well."""
    if decoded >= film["frames"]:
        return ""
    note = f"{decoded} of its {film['frames']} frames can be decoded"
    logger.warning("analyze: %s: %s", film["path"], note)
    return note


def as_table(film_id: str, found: signals.Signals, note: str = "") -> pa.Table:
    """The signals of a film as rows of the table "signals", with what is odd about it as their reason."""
    count = len(found)
    schema = tables.SCHEMAS["signals"]
    columns: dict[str, Any] = {
        "film_id": pa.array([film_id]).take(pa.array(np.zeros(count, np.int64))),
        "frame": np.arange(count),
        "transition": found.transition,
        "cut_score": found.cut_score,
        "new_pose": found.new_pose,
        "phash": np.asarray(found.phash),
        "outcome": ["ok"] * count,
        "reason": [note] * count,
    }
    for name in schema.names:
        value = getattr(found, name, None)
        columns.setdefault(name, np.asarray(value) if isinstance(value, array) else value)
    return pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names})


def _failure(film_id: str, reason: str) -> pa.Table:
    row: dict[str, Any] = dict.fromkeys(tables.SCHEMAS["signals"].names)
    return tables.table("signals", [row | {"film_id": film_id, "frame": -1, "outcome": "failed", "reason": reason}])


def _join(parts: list[Path], output: Path) -> None:
    """Join part files, one row group per film: readers of one film skip the others."""
    schema = tables.SCHEMAS["signals"]
    with files.replacing(output) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(tables.read("signals", part).cast(schema))


def _tidy(shard: Shard, parts: set[Path]) -> None:
    """Remove the shard's parts of films no longer listed or read with other settings, and what an interruption left."""
    for path in FINISHED.iterdir() if FINISHED.is_dir() else ():
        film_id = path.name.lstrip(".")[:16]
        if path not in parts and shard.owns(film_id):
            path.unlink(missing_ok=True)
