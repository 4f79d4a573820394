"""Everything a project's folder holds, read for the report: what is absent or half-written becomes a named gap."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from brickreel import files, tables
from brickreel.cluster import site_env
from brickreel.telemetry import steps
from brickreel.telemetry.steps import Steps

RESULTS = Path("results")
LOGS = Path("logs")


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


@dataclass
class ProjectFiles:
    """The whole project."""

    name: str
    films: list[dict[str, Any]]
    clips: list[dict[str, Any]]
    cut: list[dict[str, Any]]
    captions: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    caption_forecast_usd: float | None
    """What all requests were expected to cost, before any was sent."""
    encoded: list[dict[str, Any]]
    runs: list[RunFiles]
    site: dict[str, str]
    gaps: list[Gap]


class Reader:
    """Reads files and collects gaps."""

    def __init__(self) -> None:
        self.gaps: list[Gap] = []

    def table(self, what: str, name: str, path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
        """Rows of a table; none, and a gap, when it cannot be read."""
        try:
            return tables.read(name, path, columns).to_pylist()
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

    def log(self, what: str, name: str, paths: list[Path], wanted: bool = True) -> list[dict[str, Any]]:
        """Rows of JSON-lines logs that fit their schema; others are counted in a gap."""
        rows, strange = [], 0
        names = set(tables.SCHEMAS[name].names)
        for path in paths:
            try:
                found = files.read_json_lines(path)
            except OSError as error:
                self.gap(what, error, path)
                continue
            good = [row for row in found if isinstance(row, dict) and names <= set(row)]
            strange += len(found) - len(good)
            rows += good
        if strange:
            self.gaps.append(Gap(what, f"{strange} rows do not have the columns of `{name}` and are left out"))
        if not rows and wanted and not strange:
            self.gaps.append(Gap(what, "no row was written yet"))
        return rows

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
    films = reader.table("sources and licences", "sources", RESULTS / "ingest/sources.parquet")
    clips = reader.table("what curation kept and dropped", "clips", RESULTS / "curate/clips.parquet")
    cut = reader.table("clips and stills", "cut_index", RESULTS / "cut/index.parquet")
    captions = reader.table("captions", "captions", RESULTS / "caption/captions.parquet")
    ledger = reader.log(
        "caption requests", "ledger", sorted((LOGS / "caption").glob("**/*ledger*.jsonl")), wanted=False
    )
    encoded = reader.table("encoded samples", "encode_index", RESULTS / "encode/index.parquet")
    told = RESULTS / "caption/forecast.json"
    usd = (reader.json("forecast of captions", told) or {}).get("usd") if told.exists() else None
    forecast = float(usd) if isinstance(usd, int | float) else None
    runs = [_read_run(reader, run) for run in run_names]
    site = site_settings(site_env.SITE_ENV, os.environ)
    return ProjectFiles(name, films, clips, cut, captions, ledger, forecast, encoded, runs, site, reader.gaps)


def one_run(run: str) -> ProjectFiles:
    """One run alone, without the data that it was trained on."""
    reader = Reader()
    found = _read_run(reader, run)
    site = site_settings(site_env.SITE_ENV, os.environ)
    return ProjectFiles(run, [], [], [], [], [], None, [], [found], site, reader.gaps)


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
        for row in reader.table("samples", "samples", path)
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
        attempts=reader.log(f"{run}: attempts", "attempts", [train / "attempts.jsonl"]),
        steps=reader.steps(f"{run}: steps", train / "steps"),
        gauge=reader.log(f"{run}: held-out loss", "gauge", [train / "gauge.jsonl"]),
        samples=samples,
        sheet=next((path for path in sheets if path.is_file()), None),
        nearest=nearest if (nearest := RESULTS / "evaluate" / run / "nearest.jpg").is_file() else None,
        scores=reader.json(f"{run}: metrics", RESULTS / "evaluate" / run / "scores.json"),
        exported=(RESULTS / "export" / run / "model_index.json").is_file(),
        checkpoints=sorted(
            int(path.name[5:]) for path in (train / "checkpoints").glob("step-*") if path.name[5:].isdecimal()
        ),
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
