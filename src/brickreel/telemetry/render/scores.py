"""Metrics as tables: one row per metric, one column per checkpoint; cells are keys of the summary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class Table:
    """Metrics of one kind of samples."""

    title: str
    columns: list[str]
    rows: list["Row"]


@dataclass
class Row:
    """One metric; `cells` are keys below the run, such as `scores.12`, or None where nothing was sampled."""

    name: str
    unit: str
    better: str
    cells: list[str | None]
    reason: str


def tables(run: Mapping[str, Any]) -> list[Table]:
    """All metrics of a run: samples of prompts first, then other weights, lengths, and samples without prompts."""
    scores = list(enumerate(run["scores"]))
    kinds = dict.fromkeys(_kind(score) for _, score in scores if score["weights"] != "base")
    kinds = kinds or dict.fromkeys(_kind(score) for _, score in scores)
    ordered = sorted(kinds, key=lambda kind: (not kind[1], kind[2]))
    return [_table(run, scores, kind) for kind in ordered]


def _kind(score: Mapping[str, Any]) -> tuple[str, bool, int]:
    return score["weights"], bool(score.get("conditional", True)), score.get("length") or 1


def _table(run: Mapping[str, Any], scores: Sequence[tuple[int, Any]], kind: tuple[str, bool, int]) -> Table:
    weights, conditional, length = kind
    own = [
        (index, score)
        for index, score in scores
        if _kind(score) == kind or (score["weights"] == "base" and _kind(score)[1:] == kind[1:])
    ]
    steps = sorted({score["step"] for _, score in own})
    ceiling = {row["name"]: index for index, row in enumerate(run["ceiling"]) if row["value"] is not None}
    rows = []
    for name in dict.fromkeys(score["name"] for _, score in own):
        at = {score["step"]: index for index, score in own if score["name"] == name}
        score = next(score for _, score in reversed(own) if score["name"] == name)
        cells = [f"scores.{at[step]}" if step in at else None for step in steps]
        if ceiling:
            cells.append(f"ceiling.{ceiling[name]}" if name in ceiling else None)
        reasons = [score["reason"]]
        if name in ceiling and (held_out := run["ceiling"][ceiling[name]].get("reason")):
            reasons.append(f"held-out clips: {held_out}")
        reason = "; ".join(filter(None, reasons))
        rows.append(Row(name.replace("_", " "), score["unit"] or "", score.get("better") or "", cells, reason))
    heads = ["base model" if step == 0 else f"step {step:,}" for step in steps] + (
        ["held-out clips"] if ceiling else []
    )
    title = f"{weights} weights" + ("" if conditional else ", no prompt") + (f", {length} times as long" * (length > 1))
    return Table(title, heads, rows)
