"""Everything a project's folder holds, read for the report: what is absent or half-written becomes a named gap."""

import heapq
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from brickreel import files, tables
from brickreel.cluster import site_env
from brickreel.telemetry import steps
from brickreel.telemetry.steps import Steps

RESULTS = Path("results")
LOGS = Path("logs")
EXAMPLES = 3
_OF_CLIPS = ("outcome", "kind", "split", "cadence", "licence")
_OF_SAMPLES = ("outcome", "bucket", "split")
_PAID = ("usd", "tokens_in", "tokens_out", "latency_s")


@dataclass
class Gap:
    """Something the report would show, and why it cannot."""

    what: str
    why: str


@dataclass
class RunFiles:
    """What one training run left behind; absent parts are None or empty."""

    name: str
    plan: dict[str, Any] | None = None
    health: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    dataset: dict[str, Any] | None = None
    job: dict[str, Any] | None = None
    attempts: list[dict[str, Any]] = field(default_factory=list)
    steps: dict[int, Steps] = field(default_factory=dict)
    gauge: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    sheet: Path | None = None
    nearest: Path | None = None
    scores: dict[str, Any] | None = None
    exported: bool = False
    checkpoints: list[int] = field(default_factory=list)
    final_step: int | None = None
    """Step of the final weights."""


@dataclass
class ProjectFiles:
    """The whole project."""

    name: str
    films: list[dict[str, Any]] = field(default_factory=list)
    clips: list[dict[str, Any]] = field(default_factory=list)
    """Of this and the next tables, which may have millions of rows: rows that are alike as one, with their `count`."""
    cut: list[dict[str, Any]] = field(default_factory=list)
    captions: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    """Some captions."""
    ledger: dict[str, Any] = field(default_factory=lambda: _spent(()))
    """Of all caption requests."""
    caption_forecast_usd: float | None = None
    """What all requests were expected to cost, before any was sent."""
    encoded: list[dict[str, Any]] = field(default_factory=list)
    runs: list[RunFiles] = field(default_factory=list)
    site: dict[str, str] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)


class Reader:
    """Reads files and collects gaps."""

    def __init__(self) -> None:
        self.gaps: list[Gap] = []

    def rows(self, what: str, path: Path, read: Callable[[Path], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Rows that `read` makes of a table; none, and a gap, when it cannot be read."""
        try:
            return read(path)
        except (OSError, ValueError, pa.ArrowInvalid) as error:
            self.gap(what, error, path)
            return []

    def json(self, what: str, path: Path) -> dict[str, Any] | None:
        """A JSON object; None, and a gap, when it cannot be read."""
        try:
            value = files.read_json(path)
        except (OSError, ValueError) as error:
            self.gap(what, error, path)
            return None
        if not isinstance(value, dict):
            self.gap(what, ValueError(f"{path} does not hold a JSON object"), path)
            return None
        return value

    def log(self, what: str, name: str, paths: list[Path], wanted: bool = True) -> Iterator[dict[str, Any]]:
        """Rows of JSON-lines logs that fit their schema; others are counted in a gap."""
        good, strange = 0, 0
        names = set(tables.SCHEMAS[name].names) - tables.LATER
        for path in paths:
            try:
                for row in files.json_lines(path):
                    if isinstance(row, dict) and names <= set(row):
                        good += 1
                        yield row
                    else:
                        strange += 1
            except OSError as error:
                self.gap(what, error, path)
        if strange:
            self.gaps.append(Gap(what, f"{strange} rows do not have the columns of `{name}` and are left out"))
        if not good and wanted and not strange:
            self.gaps.append(Gap(what, "no row was written yet"))

    def steps(self, what: str, folder: Path) -> dict[int, Steps]:
        """The step logs of a run by attempt; what cannot be read becomes a gap."""
        unreadable: list[tuple[str, str]] = []
        found = steps.read(folder, unreadable)
        self.gaps += [Gap(f"{what} in {name}", why) for name, why in unreadable]
        if not found and not unreadable:
            self.gaps.append(Gap(what, "no row was written yet"))
        return found

    def gap(self, what: str, error: Exception, path: Path) -> None:
        """Note what cannot be shown."""
        why = f"{path} is not there: the stage has not run" if isinstance(error, FileNotFoundError) else str(error)
        self.gaps.append(Gap(what, why))


def read(name: str, run_names: list[str]) -> ProjectFiles:
    """Read the project in the working directory. Never fails for something that is missing or broken."""
    reader = Reader()
    films = reader.rows("sources and licences", RESULTS / "ingest/sources.parquet", partial(_whole, "sources"))
    clips = reader.rows("what curation kept and dropped", RESULTS / "curate/clips.parquet", _clips)
    cut = reader.rows("clips and stills", RESULTS / "cut/index.parquet", partial(_alike, "cut_index", _OF_CLIPS))
    captions = reader.rows("captions", RESULTS / "caption/captions.parquet", _captions)
    examples = reader.rows("captions", RESULTS / "caption/captions.parquet", _examples) if captions else []
    ledger = _spent(
        reader.log("caption requests", "ledger", sorted((LOGS / "caption").glob("**/*ledger*.jsonl")), wanted=False)
    )
    encoded = reader.rows(
        "encoded samples", RESULTS / "encode/index.parquet", partial(_alike, "encode_index", _OF_SAMPLES)
    )
    told = RESULTS / "caption/forecast.json"
    usd = (reader.json("forecast of captions", told) or {}).get("usd") if told.exists() else None
    forecast = float(usd) if isinstance(usd, int | float) else None
    runs = [_read_run(reader, run) for run in run_names]
    site = site_settings(site_env.SITE_ENV, os.environ)
    return ProjectFiles(name, films, clips, cut, captions, examples, ledger, forecast, encoded, runs, site, reader.gaps)


def _whole(name: str, path: Path) -> list[dict[str, Any]]:
    return tables.read(name, path).to_pylist()


def _alike(name: str, by: Sequence[str], path: Path) -> list[dict[str, Any]]:
    return tables.tally(tables.batches(name, path, by), by)


def _clips(path: Path) -> list[dict[str, Any]]:
    """With sums of the poses, frames of the film and seconds that are known."""
    columns = ["outcome", "reason", "start_frame", "end_frame", "fps", "pose_frames"]
    measured = map(_lengths, tables.batches("clips", path, columns))
    return tables.tally(measured, ["outcome", "reason"], ["poses", "frames", "seconds"])


def _lengths(clips: pa.RecordBatch) -> pa.RecordBatch:
    frames = pc.subtract(clips["end_frame"], clips["start_frame"])
    seconds = pc.divide(frames, pc.if_else(pc.equal(clips["fps"], 0), None, clips["fps"]))
    added = clips.append_column("poses", pc.list_value_length(clips["pose_frames"]))
    return added.append_column("frames", frames).append_column("seconds", seconds)


def _captions(path: Path) -> list[dict[str, Any]]:
    """With sums of words, tokens and money."""
    by, sums = ["outcome", "reason", "model", "source"], ["tokens_in", "tokens_out", "usd"]
    return tables.tally(map(_worded, tables.batches("captions", path, [*by, *sums, "text"])), by, [*sums, "words"])


def _worded(captions: pa.RecordBatch) -> pa.RecordBatch:
    texts = pc.utf8_trim_whitespace(captions["text"])
    counts = pc.list_value_length(pc.utf8_split_whitespace(texts))
    return captions.append_column("words", pc.if_else(pc.equal(texts, ""), pa.scalar(0, counts.type), counts))


def _examples(path: Path) -> list[dict[str, Any]]:
    """Captions from all over the table, of clips where there are any: by a hash, whatever order they stand in."""
    batches = tables.batches("captions", path, ["clip_id", "kind", "text", "outcome"], pc.field("outcome") == "ok")
    rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
    return heapq.nsmallest(EXAMPLES, rows, key=lambda row: (row["kind"] != "clip", files.draw_of(row["clip_id"])))


def _spent(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Requests of the ledger, and sums over those where a value is known; null where none is."""
    requests = 0
    sums: Counter[str] = Counter()
    known: Counter[str] = Counter()
    for row in rows:
        requests += 1
        for name in _PAID:
            if row[name] is not None:
                sums[name] += row[name]
                known[name] += 1
    found = {name: sums[name] if known[name] else None for name in _PAID}
    latency_s = found.pop("latency_s")
    return {"requests": requests, **found, "latency_mean_s": latency_s and latency_s / known["latency_s"]}


def one_run(run: str) -> ProjectFiles:
    """One run alone, without the data that it was trained on."""
    reader = Reader()
    found = _read_run(reader, run)
    site = site_settings(site_env.SITE_ENV, os.environ)
    return ProjectFiles(run, runs=[found], site=site, gaps=reader.gaps)


def known_runs(configured: list[str]) -> list[str]:
    """Runs of the configuration, then others that have left files here."""
    found = {
        path.name for stage in ("plan", "train", "sample") for path in (RESULTS / stage).glob("*") if path.is_dir()
    }
    return configured + sorted(found - set(configured))


def _read_run(reader: Reader, run: str) -> RunFiles:
    train, sample = RESULTS / "train" / run, RESULTS / "sample" / run
    sheets = [sample / "sheet.jpg", *sorted(sample.glob("step-*/sheet.jpg"), reverse=True)]
    samples = [
        row
        for path in sorted(sample.glob("step-*/samples.parquet"))
        for row in reader.rows("samples", path, partial(_whole, "samples"))
    ]
    if not samples:
        reader.gaps.append(Gap(f"{run}: sampled videos", f"{sample} has none: the stage has not run"))
    return RunFiles(
        name=run,
        plan=reader.json(f"{run}: plan", RESULTS / "plan" / run / "plan.json"),
        health=reader.json(f"{run}: preflight", RESULTS / "preflight" / run / "health.json"),
        settings=_optional(train / "settings.json"),
        dataset=_optional(train / "dataset.json"),
        job=_optional(train / "job.json"),
        attempts=list(reader.log(f"{run}: attempts", "attempts", [train / "attempts.jsonl"])),
        steps=reader.steps(f"{run}: steps", train / "steps"),
        gauge=list(reader.log(f"{run}: held-out loss", "gauge", [train / "gauge.jsonl"])),
        samples=samples,
        sheet=next((path for path in sheets if path.is_file()), None),
        nearest=nearest if (nearest := RESULTS / "evaluate" / run / "nearest.jpg").is_file() else None,
        scores=reader.json(f"{run}: metrics", RESULTS / "evaluate" / run / "scores.json"),
        exported=(RESULTS / "export" / run / "model_index.json").is_file(),
        checkpoints=sorted(
            int(path.name[5:]) for path in (train / "checkpoints").glob("step-*") if path.name[5:].isdecimal()
        ),
        final_step=(_optional(train / "final/final.json") or {}).get("step"),
    )


def _optional(path: Path) -> dict[str, Any] | None:
    try:
        value = files.read_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def site_settings(path: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """`BRICKREEL_*` settings of the site, from its file and, above that, the environment."""
    try:
        found = site_env.assignments(path)
    except (OSError, ValueError):
        found = {}
    return found | {name: value for name, value in environment.items() if name.startswith("BRICKREEL_")}
