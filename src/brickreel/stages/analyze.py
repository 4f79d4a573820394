"""Read every signal off one decode pass per film, one part file per shard."""

import hashlib
import logging
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from brickreel import files, tables
from brickreel.config import Analyze, Config
from brickreel.films import isolated, signals
from brickreel.progress import Bar
from brickreel.stages import Shard
from brickreel.stages.ingest import OUTPUT as SOURCES

logger = logging.getLogger("brickreel")

OUTPUT = Path("results/analyze")
# Finished films of a shard that was interrupted: kept, and joined into the shard's part at its end.
FINISHED = OUTPUT / "films"


def run(config: Config, shard: Shard = Shard()) -> None:  # noqa: B008  (frozen)
    """Write results/analyze/{shard}.parquet. A film that fails has one row with its reason."""
    listed = tables.read("sources", SOURCES).to_pylist()
    films = [film for film in listed if film["outcome"] == "ok" and shard.owns(film["film_id"])]
    settings = config.analyze
    total = sum(film["frames"] for film in films)
    with Bar(f"analyze {shard.name}", total, "frames") as bar:
        parts = [_finished(film, settings, bar) for film in films]
    _join(parts, OUTPUT / f"{shard.name}.parquet")
    tables.remove_parts(OUTPUT, shard.count)
    for part in parts:
        part.unlink(missing_ok=True)
    logger.info("analyze %s: %d films", shard.name, len(films))


def _finished(film: Mapping[str, Any], settings: Analyze, bar: Bar) -> Path:
    """The table of one film, made now or by the attempt before."""
    # The limits, so that a film which failed of them is tried again with others.
    limits = hashlib.sha256(settings.limits.model_dump_json().encode()).hexdigest()[:8]
    key = f"{film['film_id']}-{settings.height}-{settings.transnet}-{limits}"
    part = FINISHED / f"{key}.parquet"
    if not part.exists():
        tables.write("signals", part, _film(film, settings, bar))
    return part


def _film(film: Mapping[str, Any], settings: Analyze, bar: Bar) -> pa.Table:
    limits = isolated.Limits(**settings.limits.model_dump())
    arguments = (str(Path(film["path"]).resolve()), settings.height, settings.transnet, settings.threads)
    seen = 0

    def watch(frames: int) -> None:
        nonlocal seen
        bar.advance(frames - seen, note=film["title"] or film["film_id"])
        seen = frames

    try:
        found = isolated.call(signals.read, arguments, limits, watch)
    except ValueError as error:
        logger.info("analyze: %s: failed: %s", film["path"], error)
        return _failure(film["film_id"], str(error))
    watch(film["frames"])
    return as_table(film["film_id"], found)


def as_table(film_id: str, found: signals.Signals) -> pa.Table:
    """The signals of a film as rows of the table "signals"."""
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
        "reason": [""] * count,
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
