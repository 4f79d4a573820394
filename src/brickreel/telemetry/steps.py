"""The step logs of a run as arrays: one file per attempt and rank, up to millions of rows."""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pj
from numpy.typing import NDArray

from brickreel import files, tables

Array = NDArray[Any]

DURATIONS = (
    "step_s",
    "data_s",
    "forward_s",
    "backward_s",
    "comm_s",
    "optimizer_s",
    "checkpoint_s",
    "gauge_s",
    "local_s",
)
PER_RANK = (*DURATIONS, "time_s", "samples", "flops")
PER_STEP = ("loss", "grad_norm", "lr")
"""The same on every rank: the lowest rank's value is taken."""
WANTED = ("step", "skipped", *PER_RANK, *PER_STEP)
SCHEMA = pa.schema([tables.SCHEMAS["steps"].field(name) for name in WANTED])
EXACT = {"time_s": np.float64}
"""All others are kept in single precision: 512 ranks over a day are millions of values each."""


@dataclass
class Steps:
    """The steps of one attempt. Arrays are [steps, ranks], or [steps]; NaN where a rank wrote no row or no value."""

    number: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    ranks: int = 1
    by_rank: dict[str, Array] = field(default_factory=lambda: {name: np.zeros((0, 1)) for name in PER_RANK})
    by_step: dict[str, Array] = field(default_factory=lambda: {name: np.zeros(0) for name in PER_STEP})
    skipped: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))


def read(folder: Path, gaps: list[tuple[str, str]]) -> dict[int, Steps]:
    """Attempt -> its steps, from `{attempt}-{rank}.jsonl`. What cannot be read is added to `gaps` with the reason."""
    found: dict[int, dict[int, pa.Table]] = defaultdict(dict)
    for path in sorted(folder.glob("*.jsonl")):
        named = re.fullmatch(r"(\d+)-(\d+)", path.stem)
        if not named:
            gaps.append((path.name, "the file is not named ATTEMPT-RANK.jsonl"))
            continue
        try:
            found[int(named[1])][int(named[2])] = _rows(path)
        except (OSError, ValueError) as error:
            gaps.append((path.name, str(error)))
    return {attempt: _joined(found.pop(attempt)) for attempt in sorted(found)}


def _rows(path: Path) -> pa.Table:
    """The rows of one file; a line that a crash has cut is left out."""
    if not path.stat().st_size:
        return SCHEMA.empty_table()
    try:
        options = pj.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="ignore")
        table = pj.read_json(path, parse_options=options)
    except pa.ArrowInvalid:
        rows = [row for row in files.read_json_lines(path) if isinstance(row, dict)]
        try:
            table = pa.Table.from_pylist([{name: row.get(name) for name in WANTED} for row in rows], schema=SCHEMA)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"a row does not fit the table 'steps': {error}") from None
    return table.filter(table["step"].is_valid())


def _joined(by_rank: dict[int, pa.Table]) -> Steps:
    numbers = {rank: table["step"].to_numpy() for rank, table in by_rank.items()}
    steps = np.unique(np.concatenate(list(numbers.values())))
    result = Steps(steps, max(by_rank) + 1, skipped=np.zeros(len(steps), bool))
    for name in PER_RANK:
        result.by_rank[name] = np.full((len(steps), result.ranks), np.nan, EXACT.get(name, np.float32))
    result.by_step = {name: np.full(len(steps), np.nan) for name in PER_STEP}
    for rank in sorted(by_rank, reverse=True):
        table, places = by_rank.pop(rank), np.searchsorted(steps, numbers[rank])
        for name in PER_RANK:
            result.by_rank[name][places, rank] = _numbers(table[name])
        for name in PER_STEP:
            values = _numbers(table[name])
            known = ~np.isnan(values)
            result.by_step[name][places[known]] = values[known]
        result.skipped[places] |= np.nan_to_num(_numbers(table["skipped"])).astype(bool)
    return result


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return column.cast(pa.float64()).to_numpy() if column.type != pa.bool_() else _bits(column)


def _bits(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return column.cast(pa.int8()).cast(pa.float64()).to_numpy()
