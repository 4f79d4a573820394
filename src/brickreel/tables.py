"""The contracts between the stages: one versioned Arrow schema per table and log.

Every write checks its rows against the schema and every read checks the file, so that a stage never meets a column it
does not know. Paths are relative to the project's folder. A table written by shards is a folder of part files,
`captions.parquet/03.parquet`, which any Parquet reader opens as one table.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from brickreel import files

OUTCOMES = ("ok", "dropped", "failed")

# Rows that are held at a time where a table is read in batches: some 20 MB of clips.
BATCH = 16_384

_OUTCOME = [("outcome", pa.string()), ("reason", pa.string())]
_PROVENANCE = [
    ("title", pa.string()),
    ("channel", pa.string()),
    ("url", pa.string()),
    ("licence", pa.string()),
    ("rights_holder", pa.string()),
]


def _schema(name: str, version: int, columns: Sequence[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema(columns, metadata={"brickreel.table": name, "brickreel.version": str(version)})


SCHEMAS = {
    # One row per film listed in sources.csv. film_id: 16 hex digits of the content's SHA-256.
    "sources": _schema(
        "sources",
        1,
        [
            ("film_id", pa.string()),
            ("path", pa.string()),
            *_PROVENANCE,
            ("codec", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("fps", pa.float64()),
            ("frames", pa.int64()),
            ("duration_s", pa.float64()),
            ("variable_rate", pa.bool_()),
            ("sample_aspect", pa.float64()),  # width over height of a pixel as displayed
            ("rotation", pa.int32()),  # degrees clockwise that a player turns the picture by
            ("interlaced", pa.bool_()),
            *_OUTCOME,
        ],
    ),
    # One row per decoded frame. A film that could not be read has one row with frame = -1 and its reason.
    "signals": _schema(
        "signals",
        1,
        [
            ("film_id", pa.string()),
            ("frame", pa.int64()),
            ("time_s", pa.float64()),
            ("cut_score", pa.float32()),
            ("transition", pa.string()),  # "", "cut", "dissolve", "fade": what leads into this frame
            ("hold_score", pa.float32()),
            ("new_pose", pa.bool_()),
            ("luma", pa.float32()),  # mean, 0 black to 1 white
            ("contrast", pa.float32()),  # standard deviation of luma, same unit
            ("blur", pa.float32()),  # 0 sharp to 1 featureless
            ("flicker", pa.float32()),  # relative change of light to the frame before
            ("motion", pa.float32()),  # mean absolute change to the frame before without the light's, 0 to 1
            ("text_score", pa.float32()),  # share of the picture that looks like lines of text
            ("crop", pa.list_(pa.int32(), 4)),  # left, top, right, bottom in source pixels
            ("phash", pa.uint64()),
            ("thumbnail", pa.binary()),  # JPEG, every 12th frame
            *_OUTCOME,
        ],
    ),
    # One row per candidate clip. start_frame inclusive, end_frame exclusive, in decoding order of the film.
    "clips": _schema(
        "clips",
        1,
        [
            ("clip_id", pa.string()),
            ("film_id", pa.string()),
            ("path", pa.string()),
            ("start_frame", pa.int64()),
            ("end_frame", pa.int64()),
            ("fps", pa.float64()),
            ("pose_frames", pa.list_(pa.int64())),
            ("holds", pa.list_(pa.int32())),
            ("pose_rate", pa.float64()),
            ("cadence", pa.string()),  # ones, twos, threes, mixed
            ("crop", pa.list_(pa.int32(), 4)),
            ("still_frame", pa.int64()),
            ("duplicate_of", pa.string()),
            ("split", pa.string()),  # train, heldout; null unless outcome is ok
            ("luma", pa.float32()),  # this and the next: means over the poses, units as in "signals"
            ("contrast", pa.float32()),
            ("blur", pa.float32()),
            ("flicker", pa.float32()),
            ("motion", pa.float32()),
            ("change", pa.float32()),  # hold score
            ("text_score", pa.float32()),
            *_PROVENANCE,
            *_OUTCOME,
        ],
    ),
    # The dataset's manifest: one row per written clip or still, with everything later stages need to know of it.
    "cut_index": _schema(
        "cut_index",
        1,
        [
            ("clip_id", pa.string()),
            ("film_id", pa.string()),
            ("kind", pa.string()),  # clip, still
            ("path", pa.string()),
            ("frames", pa.int32()),  # frames in the file
            ("holds", pa.list_(pa.int32())),  # frames of the film that each pose is held for
            ("in_poses", pa.bool_()),  # True: the file holds one frame per pose; False: holds are in it
            ("fps", pa.float64()),  # of the film
            ("pose_rate", pa.float64()),
            ("cadence", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("split", pa.string()),
            ("sha256", pa.string()),
            ("text", pa.string()),  # a caption that came with an adopted dataset, else null
            *_PROVENANCE,
            *_OUTCOME,
        ],
    ),
    "captions": _schema(
        "captions",
        1,
        [
            ("clip_id", pa.string()),
            ("kind", pa.string()),
            ("text", pa.string()),
            ("subjects", pa.string()),
            ("action", pa.string()),
            ("camera", pa.string()),
            ("setting", pa.string()),
            ("style", pa.string()),
            ("confidence", pa.float32()),
            ("source", pa.string()),  # machine, person
            ("model", pa.string()),
            ("prompt_version", pa.string()),
            ("tokens_in", pa.int64()),
            ("tokens_out", pa.int64()),
            ("usd", pa.float64()),
            *_OUTCOME,
        ],
    ),
    # One row per request to a captioning server that has ended (JSON lines in logs/caption/ledger.jsonl).
    "ledger": _schema(
        "ledger",
        1,
        [
            ("time_s", pa.float64()),  # Unix time
            ("request", pa.string()),  # unique
            ("shard", pa.string()),
            ("clip_id", pa.string()),
            ("kind", pa.string()),
            ("key", pa.string()),  # hash of content, model, prompt and pictures: the same key is never paid for twice
            ("content_hash", pa.string()),
            ("model", pa.string()),
            ("prompt_version", pa.string()),
            ("pictures", pa.string()),  # number, longest side in pixels and detail: 3 x 512 low
            ("max_tokens", pa.int64()),  # longest answer that was allowed
            ("tokens_in", pa.int64()),
            ("tokens_out", pa.int64()),
            ("usd", pa.float64()),  # what counts against the budget
            ("billed", pa.string()),  # reported by the endpoint, none (refused), unknown (no answer: the highest price)
            ("latency_s", pa.float64()),
            ("answer", pa.string()),  # JSON of the structured answer, else null
            *_OUTCOME,
        ],
    ),
    # One row per encoded sample: tensors stand in `file` under `sample_id`.
    "encode_index": _schema(
        "encode_index",
        1,
        [
            ("sample_id", pa.string()),
            ("clip_id", pa.string()),
            ("film_id", pa.string()),
            ("kind", pa.string()),
            ("bucket", pa.string()),  # resolution-frames-ratio-sampling
            ("frames", pa.int32()),
            ("height", pa.int32()),  # pixels
            ("width", pa.int32()),
            ("pose_rate", pa.float64()),  # what the model's fps input is told
            ("offset", pa.int32()),  # first pose or frame of the clip that is shown
            ("crop", pa.float32()),  # place of the crop along the cut side, 0 to 1
            ("text_tokens", pa.int32()),
            ("scaling_factor", pa.float64()),  # what the transformer sees is the latent times this
            ("split", pa.string()),
            ("data_keys", pa.list_(pa.string())),  # data settings of the runs that this row concerns
            ("file", pa.string()),
            ("text_file", pa.string()),
            ("crc32", pa.int64()),  # of mean, logvar and text
            *_OUTCOME,
        ],
    ),
    # JSON lines: one row per attempt of a training run, written when the attempt starts and again when it ends.
    "attempts": _schema(
        "attempts",
        1,
        [
            ("attempt", pa.int32()),
            ("event", pa.string()),  # start, end
            ("time_s", pa.float64()),  # Unix time
            ("world_size", pa.int32()),
            ("nodes", pa.list_(pa.string())),  # by rank
            ("gpus", pa.int32()),
            ("job_id", pa.string()),
            ("backend", pa.string()),
            ("first_step", pa.int64()),
            ("last_step", pa.int64()),
            *_OUTCOME,
        ],
    ),
    # JSON lines, one file per attempt and rank: one row per optimizer step. Durations in seconds of this rank.
    "steps": _schema(
        "steps",
        1,
        [
            ("attempt", pa.int32()),
            ("rank", pa.int32()),
            ("step", pa.int64()),  # 1 is the first optimizer step
            ("time_s", pa.float64()),  # Unix time at the end of the step
            ("step_s", pa.float64()),  # whole step, everything below included
            ("data_s", pa.float64()),  # blocked in the loader
            ("forward_s", pa.float64()),
            ("backward_s", pa.float64()),
            ("comm_s", pa.float64()),  # exposed communication; null where the backend cannot tell it, as on GPUs
            ("optimizer_s", pa.float64()),
            ("checkpoint_s", pa.float64()),
            ("gauge_s", pa.float64()),
            ("local_s", pa.float64()),  # own work before the step's first collective; null where weights are sharded
            ("samples", pa.int32()),  # of this rank
            ("sample_ids", pa.list_(pa.string())),
            ("tokens", pa.int64()),
            ("flops", pa.float64()),  # model FLOPs of this rank, forward and backward, without recomputation
            ("loss", pa.float64()),  # global, the same on every rank
            ("grad_norm", pa.float64()),
            ("weight_norm", pa.float64()),
            ("lr", pa.float64()),
            ("skipped", pa.bool_()),  # NaN or Inf: no update
        ],
    ),
    # JSON lines: the held-out loss, one row per timestep bin and set of weights.
    "gauge": _schema(
        "gauge",
        1,
        [
            ("attempt", pa.int32()),
            ("step", pa.int64()),
            ("time_s", pa.float64()),
            ("weights", pa.string()),  # raw, ema
            ("bin", pa.int32()),
            ("t_low", pa.int32()),
            ("t_high", pa.int32()),  # exclusive
            ("loss", pa.float64()),
            ("low", pa.float64()),  # 95 % interval over clips
            ("high", pa.float64()),
            ("relative", pa.float64()),  # to step 0 of the same weights, bin and questions
            ("clips", pa.int32()),
            ("questions", pa.string()),  # digest of what was asked: only readings with the same one are compared
        ],
    ),
    # One row per generated video.
    "samples": _schema(
        "samples",
        1,
        [
            ("prompt_id", pa.string()),
            ("prompt", pa.string()),
            ("seed", pa.int64()),
            ("step", pa.int64()),  # 0: the base model
            ("weights", pa.string()),  # base, raw, ema
            ("conditional", pa.bool_()),
            ("length", pa.int32()),  # multiple of the trained number of poses
            ("path", pa.string()),
            ("frames", pa.int32()),  # poses
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("pose_rate", pa.float64()),  # poses per second
            ("holds", pa.list_(pa.int32())),  # video frames that each pose was written for
            ("sampler", pa.string()),
            ("steps", pa.int32()),
            ("guidance", pa.float64()),
            ("seconds", pa.float64()),
            *_OUTCOME,
        ],
    ),
}
LATER = {"pictures", "max_tokens", "questions"}
"""Columns that the rows of logs from before them lack: they are null."""


def table(name: str, rows: Iterable[Mapping[str, Any]] | pa.Table) -> pa.Table:
    """Rows as an Arrow table of the named schema.

    Raises ValueError for an unknown column, a missing one, a wrong type, or an outcome outside `OUTCOMES`.
    Missing is not the same as null: every column must be given, so that a forgotten one is noticed.
    """
    schema = SCHEMAS[name]
    if isinstance(rows, pa.Table):
        _check_columns(name, rows.column_names)
        result = rows.select(schema.names).cast(schema)
    else:
        rows = list(rows)
        for row in rows:
            _check_columns(name, row)
        try:
            result = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise ValueError(f"a row does not fit the table '{name}': {error}") from error
    if "outcome" in schema.names and result.num_rows:
        strange = set(pc.unique(result["outcome"]).to_pylist()) - set(OUTCOMES)
        if strange:
            raise ValueError(f"table '{name}' has unknown outcomes {sorted(map(str, strange))}: use {OUTCOMES}")
    return result


def _check_columns(name: str, columns: Iterable[str]) -> None:
    given, wanted = set(columns), set(SCHEMAS[name].names)
    if given != wanted:
        extra, missing = sorted(given - wanted), sorted(wanted - given)
        raise ValueError(f"table '{name}' does not match its schema: unknown {extra}, missing {missing}")


def write(name: str, path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]] | pa.Table) -> pa.Table:
    """Check rows against the named schema and write them to a Parquet file, whole or not at all."""
    result = table(name, rows)
    with files.replacing(path) as temporary:
        pq.write_table(result, temporary, compression="zstd")
    return result


def read(name: str, path: str | os.PathLike[str], columns: Sequence[str] | None = None, where: Any = None) -> pa.Table:
    """Read a table, a file or a folder of part files, and check its schema.

    `where` is a pyarrow.dataset expression. Raises FileNotFoundError or ValueError with a sentence.
    """
    schema, parts = SCHEMAS[name], _parts(name, path)
    if not parts:
        return schema.empty_table().select(columns or schema.names)
    return ds.dataset([str(part) for part in parts], schema=schema).to_table(
        columns=columns and list(columns), filter=where
    )


def batches(
    name: str, path: str | os.PathLike[str], columns: Sequence[str] | None = None, where: Any = None
) -> Iterator[pa.RecordBatch]:
    """As `read`, at most BATCH rows at a time: the table is never held as a whole. `where` asks for columns read."""
    for part in _parts(name, path):
        # A scanner of pyarrow.dataset would hold whole row groups, of a million rows each.
        with pq.ParquetFile(part) as source:
            for batch in source.iter_batches(BATCH, columns=columns):
                yield batch if where is None else batch.filter(where)


def owned(
    name: str,
    path: str | os.PathLike[str],
    column: str,
    owns: Callable[[str], bool],
    where: Any = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """As `batches`, of the rows alone whose value in a column passes, such as the films that a shard `owns`."""
    schema = pa.schema([SCHEMAS[name].field(each) for each in columns or SCHEMAS[name].names])
    return pa.Table.from_batches((_owned(batch, column, owns) for batch in batches(name, path, columns, where)), schema)


def _owned(batch: pa.RecordBatch, column: str, owns: Callable[[str], bool]) -> pa.RecordBatch:
    # Each value is judged once: a film has many clips.
    values = batch.column(column).dictionary_encode()
    judged = pa.array([owns(value) for value in values.dictionary.to_pylist()], pa.bool_())
    return batch.filter(judged.take(values.indices))


def tally(rows: Iterable[pa.RecordBatch], by: Sequence[str], sums: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows that agree in the columns `by` as one row, with their `count` and the sums of other columns.

    In the order of their first ones; the sum of nulls alone is null.
    """
    wanted = [(name, "sum") for name in sums]
    found = [
        pa.Table.from_batches([batch]).group_by(by, use_threads=False).aggregate([([], "count_all"), *wanted])
        for batch in rows
    ]
    if not found:
        return []
    names = [*by, "count", *sums]
    joined = pa.concat_tables(found).rename_columns(names).group_by(by, use_threads=False)
    return joined.aggregate([("count", "sum"), *wanted]).rename_columns(names).to_pylist()


def _parts(name: str, path: str | os.PathLike[str]) -> list[Path]:
    """The files of a table, each with its schema checked."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run the stage that writes it first")
    parts = files_of(path) if path.is_dir() else [path]
    for part in parts:
        try:
            found = pq.read_schema(part)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{part} is not a readable Parquet file: {error}") from error
        check_schema(name, found, part)
    return parts


def files_of(folder: Path) -> list[Path]:
    """Part files of a table, in order; not those that a writer has not finished, whose names begin with a dot."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))


def remove_parts(folder: Path, first: int) -> None:
    """Remove the parts from this number on: an earlier run had more shards, and their rows stand in the others now."""
    for part in files_of(folder):
        if part.stem.isdecimal() and int(part.stem) >= first:
            part.unlink(missing_ok=True)


def check_schema(name: str, found: pa.Schema, path: str | os.PathLike[str]) -> None:
    """Raise ValueError unless a file's schema is the named one, in its version."""
    schema = SCHEMAS[name]
    want = schema.metadata[b"brickreel.version"]
    have = (found.metadata or {}).get(b"brickreel.version", b"none")
    if have != want or not found.equals(schema, check_metadata=False):
        raise ValueError(
            f"{path} is not a table '{name}' of version {want.decode()} (found version {have.decode()}): "
            "delete it and run the stage that writes it again"
        )


def log(name: str, path: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
    """Append one checked row to a JSON-lines log of the named schema. Missing values are null, never absent."""
    row = _with_later(name, row)
    _check_columns(name, row)
    files.append_json_line(path, row)


def read_log(name: str, path: str | os.PathLike[str]) -> pa.Table:
    """Read a JSON-lines log as a table; lines cut by a crash are skipped."""
    return table(name, [_with_later(name, row) for row in files.json_lines(path)])


def _with_later(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {**dict.fromkeys(LATER.intersection(SCHEMAS[name].names)), **row}
