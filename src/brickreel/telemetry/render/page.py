"""The page: one HTML file from the summary and a handful of pictures. Needs no network and no JavaScript."""

from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from brickreel.telemetry.goodput import CAUSES
from brickreel.telemetry.heat import Maps
from brickreel.telemetry.render import charts, scores
from brickreel.telemetry.render.numbers import Numbers, hours_scale, plain
from brickreel.telemetry.render.words import CAUSE_PHRASES, CAUSE_WORDS
from brickreel.telemetry.training import NOT_TOLD
from brickreel.telemetry.usage import WHOLE_PCT


def page(
    summary: Mapping[str, Any], maps: Mapping[str, Maps], media: Mapping[str, Mapping[str, Any]], title: str
) -> str:
    """The whole page as text."""
    environment = Environment(
        loader=PackageLoader("brickreel.telemetry.render", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = Numbers(summary)
    environment.globals |= {
        "n": numbers.number,
        "hours": numbers.hours,
        "t": numbers.text,
        "moment": numbers.moment,
        "value": numbers.value,
        "score_tables": scores.tables,
        "plain": plain,
        "cause_words": CAUSE_WORDS,
        "cause_texts": CAUSES,
        "style": _asset("style.css"),
        "script": _asset("page.js"),
        "charts": charts,
        "markup": Markup,
        "whole_pct": WHOLE_PCT,
        "not_told": NOT_TOLD,
    }
    template = environment.get_template("page.html.j2")
    return template.render(s=summary, maps=maps, media=media, title=title, headline=headline(summary))


def _asset(name: str) -> Markup:
    text = resources.files("brickreel.telemetry.render").joinpath("templates", name).read_text(encoding="utf-8")
    return Markup(text)  # noqa: S704 - a file of this package, nobody's input


def headline(summary: Mapping[str, Any]) -> list[str]:
    """One sentence per run, from the summary's numbers."""
    sentences = []
    for run in summary["runs"]:
        if run["time_pct"] is None:
            sentences.append(f"{run['run']}: no training time was recorded yet.")
            continue
        hours, unit = (
            (run["gpu_hours"], "GPU-hours") if run["gpu_hours"] is not None else (run["rank_hours"], "rank-hours")
        )
        shares = run["time_pct"]
        scale, shown_unit = hours_scale(hours, unit)
        sentence = (
            f"{run['run']}: {plain(shares['goodput'], 1)} % of {plain(hours * scale)} {shown_unit} trained the model"
        )
        if shares["comm_exposed"] is None:
            sentence += ", communication that was not measured included"
        causes = [cause for cause in shares if cause != "goodput" and shares[cause] is not None]
        worst = max(causes, key=lambda cause: shares[cause])
        if shares[worst] >= 1:
            sentence += f"; the largest other part went into {CAUSE_PHRASES[worst]}, {plain(shares[worst], 1)} %"
        if slow := [*run["slow_nodes"], *run["stragglers"]]:
            item = max(slow, key=lambda item: item["cost_hours"])
            scale, shown_unit = hours_scale(item["cost_hours"], unit)
            name = f"rank {item['rank']}" if "rank" in item else f"the slow node {item['node']}"
            sentence += f"; {name} cost {plain(item['cost_hours'] * scale)} {shown_unit}"
        sentences.append(sentence + ".")
    return sentences
