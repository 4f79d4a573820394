"""The configuration: one frozen section per stage, unknown keys refused, every setting documented where it stands.

What the experiment is stands in `config.yaml`; what the cluster is stands in `slurm/`. A settings file of one stage
holds only the sections that the stage reads (`STAGE_SECTIONS`), and is itself a configuration that `load` accepts:
hence a changed setting reruns its own stage and what depends on it, and nothing else. Loads no torch.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from brickreel import files
from brickreel.config.captions import Caption, CaptionServer
from brickreel.config.evaluation import Evaluate, Export, Sample
from brickreel.config.films import Analyze, Curate, Cut, Ingest, Limits
from brickreel.config.project import Project, Report, Telemetry
from brickreel.config.section import Name, Section
from brickreel.config.training import P2, Base, Component, Encode, Lora, Plan, Preflight, Run, RunData, Schedule, Train

__all__ = [
    "P2",
    "STAGE_SECTIONS",
    "Analyze",
    "Base",
    "Caption",
    "CaptionServer",
    "Component",
    "Config",
    "Curate",
    "Cut",
    "Encode",
    "Evaluate",
    "Export",
    "Ingest",
    "Limits",
    "Lora",
    "Plan",
    "Preflight",
    "Project",
    "Report",
    "Run",
    "RunData",
    "Sample",
    "Schedule",
    "Section",
    "Telemetry",
    "Train",
    "load",
    "settings_path",
    "stage_settings",
    "write_settings",
]


class Config(Section):
    """The whole configuration."""

    project: Project = Project()
    ingest: Ingest = Ingest()
    analyze: Analyze = Analyze()
    curate: Curate = Curate()
    cut: Cut = Cut()
    caption: Caption = Caption()
    base: Base = Base()
    encode: Encode = Encode()
    runs: Mapping[Name, Run] = {}
    plan: Plan = Plan()
    preflight: Preflight = Preflight()
    train: Train = Train()
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    report: Report = Report()
    telemetry: Telemetry = Telemetry()

    @model_validator(mode="after")
    def _runs_exist(self) -> "Config":
        unknown = sorted(set(self.project.runs or ()) - set(self.runs))
        if unknown and self.runs:
            raise ValueError(
                f"project.runs names {unknown}, which `runs:` does not have: choose from {sorted(self.runs)}"
            )
        return self

    @property
    def selected_runs(self) -> dict[str, Run]:
        """The runs that the graph trains, by name."""
        names = self.project.runs if self.project.runs is not None else tuple(self.runs)
        return {name: self.runs[name] for name in names}

    def run(self, name: str) -> Run:
        """The settings of one run. Raises ValueError that lists the names there are."""
        if name not in self.runs:
            raise ValueError(f"there is no run '{name}' in `runs:`: choose from {sorted(self.runs)}")
        return self.runs[name]


# The parts of the configuration that decide a stage's result, as dotted paths; {run} is the run's name, * is any.
STAGE_SECTIONS: dict[str, tuple[str, ...]] = {
    "ingest": ("ingest",),
    "analyze": ("analyze",),
    "curate": ("curate",),
    "cut": ("cut",),
    "caption": ("caption",),
    "encode": ("encode", "base.autoencoder", "base.text_encoder", "runs.*.data"),
    "plan": ("plan", "base", "encode", "caption", "runs.{run}"),
    "preflight": ("preflight", "base", "runs.{run}"),
    "train": ("train", "base", "encode", "runs.{run}"),
    "sample": ("sample", "base", "encode", "runs.{run}"),
    "evaluate": ("evaluate", "sample", "runs.{run}"),
    "export": ("export", "base", "sample", "runs.{run}", "project.name"),
    "report": ("report", "project"),
}


def load(*sources: str | os.PathLike[str] | Mapping[str, Any]) -> Config:
    """Read and merge configurations, later ones over earlier ones, and check the result.

    Each source is a YAML or JSON file or a mapping. Mappings merge key by key; everything else replaces.
    Raises ValueError with one sentence per wrong key, naming the field.
    """
    merged: dict[str, Any] = {}
    for source in sources:
        _merge(merged, source if isinstance(source, Mapping) else _read(Path(source)))
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ValueError(_explain(error)) from None


TELEMETRY = "BRICKREEL_TELEMETRY"
"""Variable by which the graph tells its stages how they are recorded: a setting of theirs would make them run anew."""


def telemetry(config: Config, environ: Mapping[str, str] = os.environ) -> Telemetry:
    """How to record: as the graph says, else as the configuration does. Raises ValueError where the graph's is none."""
    told = environ.get(TELEMETRY)
    return load({"telemetry": yaml.safe_load(told)}).telemetry if told else config.telemetry


def _read(path: Path) -> Mapping[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no configuration file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(value, Mapping | None):
        raise ValueError(f"{path} must hold sections such as `curate:`, not a {type(value).__name__}")
    return value or {}


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = json.loads(json.dumps(value)) if isinstance(value, Mapping) else value


def _explain(error: ValidationError) -> str:
    sentences = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "configuration"
        if problem["type"] == "extra_forbidden":
            sentences.append(f"configuration: unknown key `{where}`{_neighbours(problem['loc'])}")
        else:
            # A key that stands where its variable's name belongs must not end up in a log.
            hidden = problem["type"] == "secret" or "key" in where.rpartition(".")[2]
            found = "" if hidden else f" (found {problem['input']!r:.60})"
            told = problem["msg"].removeprefix("Value error, ")
            # What is wrong between sections names them itself.
            sentences.append(f"configuration: `{where}`: {told}{found}" if problem["loc"] else f"configuration: {told}")
    return "; ".join(sentences)


def _neighbours(location: Sequence[Any]) -> str:
    section: Any = Config
    for part in location[:-1]:
        field = getattr(section, "model_fields", {}).get(part)
        section = field.annotation if field else None
    names = sorted(getattr(section, "model_fields", {}))
    return f": choose from {', '.join(names)}" if names else ""


def stage_settings(config: Config, stage: str, run: str | None = None) -> dict[str, Any]:
    """The part of the configuration that a stage reads, as a configuration of its own."""
    everything = config.model_dump(mode="json")
    everything["runs"] = {name: everything["runs"][name] for name in config.selected_runs}
    result: dict[str, Any] = {}
    for section in STAGE_SECTIONS[stage]:
        _copy(everything, result, [run if part == "{run}" else part for part in section.split(".")])
    return result


def _copy(source: Mapping[str, Any], target: dict[str, Any], path: Sequence[Any]) -> None:
    head, rest = path[0], path[1:]
    for key in source if head == "*" else [head]:
        if rest:
            _copy(source[key], target.setdefault(key, {}), rest)
        else:
            target[key] = source[key]


def settings_path(stage: str, run: str | None = None) -> Path:
    """Where `write_settings` puts the settings of a stage."""
    return Path("results/settings") / (f"{stage}-{run}.json" if run else f"{stage}.json")


def write_settings(config: Config, stage: str, run: str | None = None) -> Path:
    """Write a stage's settings file, leaving an unchanged one untouched, and return its path."""
    path = settings_path(stage, run)
    text = json.dumps(stage_settings(config, stage, run), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    files.write_text_if_changed(path, text)
    return path
