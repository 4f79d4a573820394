"""`brickreel compare RUN RUN`: settings that differ, curves, metrics and videos of two runs, side by side on a page."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from brickreel import files, running
from brickreel.telemetry import media, project, summary
from brickreel.telemetry.project import RunFiles

STAGES = ("plan", "train", "sample", "evaluate")
# Measured in features of a network: in those of another one the same videos have other values.
OF_FEATURES = ("drift", "frechet_distance", "kernel_distance")
# Ways of making videos that their metrics depend on, as the table of samples calls them.
MADE = {
    "frames": "poses", "height": "height", "width": "width", "pose_rate": "poses per second", "steps": "steps",
    "sampler": "sampler", "guidance": "guidance",
}  # fmt: skip


@click.command("compare")
@click.argument("first")
@click.argument("second")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the page. Default: results/compare/A-B.")
def command(first: str, second: str, out: Path | None) -> None:
    """Set two runs of this project side by side: FIRST and SECOND are names from `runs:`."""
    running.set_up_logging()

    def write() -> None:
        folder = out or Path("results/compare") / f"{first}-{second}"
        click.echo(str(write_page(first, second, folder)))

    running.guarded("compare", False, write)


def write_page(first: str, second: str, folder: Path) -> Path:
    """Write `folder/index.html` with its `media/` and `comparison.json`, and return the page's path.

    Raises ValueError for the same run twice, FileNotFoundError for a run that has left nothing here.
    """
    from brickreel.telemetry.render import comparison

    if first == second:
        raise ValueError(f"'{first}' and '{second}' are the same run: name two")
    runs = [project.one_run(name) for name in (first, second)]
    for name, found in zip((first, second), runs, strict=True):
        one = found.runs[0]
        if not (one.steps or one.samples or one.settings or one.plan):
            raise FileNotFoundError(f"run '{name}' has left nothing under results/: is this the project's folder?")
    of_report = [summary.assemble(found, [])[0]["runs"][0] for found in runs]
    scores = [found.runs[0].scores or {} for found in runs]
    gaps = [f"{gap.what}: {gap.why}" for found in runs for gap in found.gaps]
    if apart := other_features(*scores):
        told = f"{first} is measured in features of {apart[0]}, {second} in those of {apart[1]}"
        gaps.insert(0, f"{', '.join(OF_FEATURES).replace('_', ' ')} are not compared: {told}")
    result = summary.finite(
        {
            "runs": [first, second],
            "settings": settings_that_differ(*(_settings(name) for name in (first, second))),
            "metrics": metrics(scores[0], scores[1], _videos(first), _videos(second)),
            "made": made_otherwise(*(found.runs[0].samples for found in runs)),
            "gaps": gaps,
        }
    )
    shown = side_by_side([found.runs[0] for found in runs], folder / "media")
    files.write_json(folder / "comparison.json", result)
    files.write_text(folder / "index.html", comparison.page(result, of_report, shown))
    return folder / "index.html"


def _settings(run: str) -> dict[str, Any]:
    """What the run was made with, as dotted names; its own section stands under `run`."""
    found: dict[str, Any] = {}
    for stage in STAGES:
        try:
            value = files.read_json(Path("results/settings") / f"{stage}-{run}.json")
        except (OSError, ValueError):
            continue
        _flatten("", value, found)
    at_training = project.RESULTS / "train" / run / "settings.json"
    if at_training.is_file():
        _flatten(f"runs.{run}", files.read_json(at_training), found)
    return {name.replace(f"runs.{run}.", "run.", 1): value for name, value in found.items()}


def _flatten(prefix: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            _flatten(f"{prefix}.{key}" if prefix else str(key), inner, into)
    else:
        into[prefix] = value


def settings_that_differ(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of name, first and second value; what only one of them has is None in the other."""
    return [
        {"name": name, "first": first.get(name), "second": second.get(name)}
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


def _videos(run: str) -> list[dict[str, Any]]:
    try:
        found = files.read_json(project.RESULTS / "evaluate" / run / "videos.json")
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def other_features(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[str, str] | None:
    """The networks in whose features two evaluations measured, where they are two."""
    names = first.get("features"), second.get("features")
    return (str(names[0]), str(names[1])) if all(names) and names[0] != names[1] else None


def made_otherwise(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """In what the videos of the last step, prompted and of the trained length, were made in another way."""
    one, two = _made(first), _made(second)
    return [
        {"name": name, "first": ", ".join(one[column]), "second": ", ".join(two[column])}
        for column, name in MADE.items()
        if one[column] and two[column] and one[column] != two[column]
    ]


def _made(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    last = max((row["step"] for row in rows), default=0)
    usual = [row for row in rows if row["step"] == last and row["conditional"] and row["length"] == 1]
    usual = [row for row in usual if row["outcome"] == "ok"]
    return {column: sorted({f"{row[column]}" for row in usual}) for column in MADE}


def metrics(
    first: Mapping[str, Any], second: Mapping[str, Any], videos: Sequence[Any], others: Sequence[Any]
) -> list[dict[str, Any]]:
    """Metrics of the last weights of both runs, with the paired difference over the prompts that both have.

    Where they were measured in features of two networks there is none.
    """
    one, two = _last(first), _last(second)
    apart = OF_FEATURES if other_features(first, second) else ()
    differences = paired(videos, others)
    rows = []
    for key in one.keys() | two.keys():
        name, conditional, length = key
        a, b = one.get(key), two.get(key)
        about = a or b or {}
        rows.append(
            {
                "name": name,
                "conditional": conditional,
                "length": length,
                "better": about.get("better"),
                "unit": about.get("unit"),
                "first": a,
                "second": b,
                "comparable": name not in apart,
                "difference": None if name in apart else differences.get(key),
            }
        )
    return sorted(rows, key=lambda row: (not row["conditional"], row["length"], row["name"]))


def _last(scores: Mapping[str, Any]) -> dict[tuple[str, bool, int], dict[str, Any]]:
    found: dict[tuple[str, bool, int], dict[str, Any]] = {}
    for row in scores.get("metrics", []):
        key = (row["name"], row["conditional"], row["length"])
        known = found.get(key)
        # EMA weights are what is exported; raw ones count where there are no others.
        if known is None or (row["step"], row["weights"] != "raw") >= (known["step"], known["weights"] != "raw"):
            found[key] = row
    return found


def paired(first: Sequence[Any], second: Sequence[Any]) -> dict[tuple[str, bool, int], dict[str, Any]]:
    """Second minus first per metric, between videos of one prompt and seed, with Student's interval over prompts.

    The runs share noise and prompts, so that differences say more than two intervals that overlap.
    """
    from scipy import stats  # here, since it takes a second to import

    by_key = [_by_prompt(videos) for videos in (first, second)]
    found = {}
    for key in by_key[0].keys() & by_key[1].keys():
        a, b = by_key[0][key], by_key[1][key]
        per_prompt: dict[str, list[float]] = defaultdict(list)
        for place in a.keys() & b.keys():
            per_prompt[place[0]].append(b[place] - a[place])
        means = [math.fsum(values) / len(values) for values in per_prompt.values()]
        if not means:
            continue
        mean = math.fsum(means) / len(means)
        low = high = None
        if len(means) > 1:
            spread = math.sqrt(math.fsum((value - mean) ** 2 for value in means) / (len(means) - 1) / len(means))
            reach = float(stats.t.ppf(0.975, len(means) - 1)) * spread
            low, high = mean - reach, mean + reach
        found[key] = {"value": mean, "low": low, "high": high, "n": len(means)}
    return found


def _by_prompt(videos: Sequence[Any]) -> dict[tuple[str, bool, int], dict[tuple[str, int], float]]:
    """Metric and kind of video -> prompt and seed -> value, of the last step."""
    named = {"path", "prompt", "seed", "step", "weights", "conditional", "length", "poses", "nearest"}
    found: dict[tuple[str, bool, int], dict[tuple[str, int], float]] = defaultdict(dict)
    last = max((row["step"] for row in videos), default=0)
    for row in sorted(videos, key=lambda row: row["weights"] != "raw"):
        if row["step"] == last:
            for name in row.keys() - named:
                found[name, row["conditional"], row["length"]][row["prompt"], row["seed"]] = row[name]
    return dict(found)


def side_by_side(runs: Sequence[RunFiles], folder: Path) -> list[dict[str, Any]]:
    """Videos of the last step of both runs, a row per prompt and seed that either has; copied into `folder`."""
    grids = [media.collect(run, folder) for run in runs]
    rows: dict[tuple[str, int, bool], dict[str, Any]] = {}
    for place, grid in enumerate(grids):
        for row in grid["rows"]:
            key = (row["prompt_id"], row["seed"], row["conditional"])
            shown = rows.setdefault(key, {**row, "cells": [{"src": None, "reason": "not sampled"}] * 3})
            shown["cells"][1 + place] = row["cells"][-1]
            if grid["steps"][0] == 0 and shown["cells"][0]["src"] is None:
                shown["cells"][0] = row["cells"][0]
    return list(rows.values())
