"""The page of `brickreel compare`."""

from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from brickreel.telemetry.render import svg
from brickreel.telemetry.render.numbers import plain

# Metrics whose course over the checkpoints is drawn.
DRAWN = ("kernel_distance", "smoothness", "noise", "drift")

Points = tuple[Sequence[float], Sequence[float | None]]


def page(result: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole page as text. `runs` are the runs' parts of the report's summary, `rows` their videos."""
    environment = Environment(
        loader=PackageLoader("brickreel.telemetry.render", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = resources.files("brickreel.telemetry.render").joinpath("templates", "style.css").read_text("utf-8")
    template = environment.get_template("compare.html.j2")
    # The style is a file of this package, nobody's input.
    apart = {row["name"] for row in result["metrics"] if not row["comparable"]}
    return template.render(c=result, rows=rows, charts=charts(runs, apart), number=number, verdict=verdict,
                           style=Markup(style))  # fmt: skip  # noqa: S704


def number(value: float | None) -> str:
    """Three significant digits; a dash for what was not measured."""
    return "–" if value is None else plain(value)


def verdict(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """What the paired difference says, in words."""
    if not row["comparable"]:
        return "not comparable: features of two networks"
    difference = row["difference"]
    if not difference or difference["low"] is None:
        return "no interval"
    if difference["low"] <= 0 <= difference["high"]:
        return "not told apart"
    higher, lower = (names[1], names[0]) if difference["value"] > 0 else (names[0], names[1])
    return {"lower": f"{lower} is better", "higher": f"{higher} is better"}.get(row["better"], f"{higher} is higher")


def charts(runs: Sequence[Mapping[str, Any]], apart: Collection[str] = ()) -> list[Markup]:
    """Training loss, held-out loss and metrics over steps, a line per run; none of what cannot be set side by side."""
    drawn = [_chart("Training loss", [(run["run"], run["curve"]["step"], run["curve"]["loss"]) for run in runs])]
    drawn.append(_chart("Held-out loss relative to step 0, mean over timesteps", [_held_out(run) for run in runs]))
    for name in [name for name in DRAWN if name not in apart]:
        held = next((row["value"] for run in runs for row in run["ceiling"] if row["name"] == name), None)
        drawn.append(_chart(name.replace("_", " "), [_metric(run, name) for run in runs], held))
    return [chart for chart in drawn if chart]


def _held_out(run: Mapping[str, Any]) -> tuple[str, Sequence[float], Sequence[float | None]]:
    series = [item for item in run["gauge"]["series"] if item["weights"] == "ema"]
    steps = sorted(set.intersection(*(set(item["step"]) for item in series))) if series else []
    at = [dict(zip(item["step"], item["relative"], strict=True)) for item in series]
    # Readings of fewer clips than step 0 are not relative to it.
    steps = [step for step in steps if all(one[step] is not None for one in at)]
    return run["run"], steps, [float(np.mean([one[step] for one in at])) for step in steps]


def _metric(run: Mapping[str, Any], name: str) -> tuple[str, Sequence[float], Sequence[float | None]]:
    usual = {
        row["step"]: row["value"]
        for row in run["scores"]
        if row["name"] == name and row["conditional"] and row["length"] == 1 and row["weights"] != "raw"
    }
    steps = [step for step in sorted(usual) if usual[step] is not None]
    return run["run"], steps, [usual[step] for step in steps]


def _chart(
    title: str, series: Sequence[tuple[str, Sequence[float], Sequence[float | None]]], mark: float | None = None
) -> Markup | None:
    """Lines over the steps of all runs; between its own points a line is straight."""
    known = [(name, x, y) for name, x, y in series if len(x)]
    if not known:
        return None
    steps = sorted({float(step) for _, x, _ in known for step in x})
    lines = []
    for name, x, y in known:
        style = next(index for index, item in enumerate(series) if item[0] == name)
        values: list[Any] = list(np.interp(steps, x, np.array(y, float), left=np.nan, right=np.nan))
        lines.append(svg.Line(name, [None if np.isnan(value) else float(value) for value in values], style=style))
    said = "; ".join(
        f"{name}: {number(y[0])} at step {x[0]:g}, {number(y[-1])} at step {x[-1]:g}" for name, x, y in known
    )
    return svg.line_chart(title, said, steps, lines, "step", "", mark=mark)
