"""From films to samples, counted: sources and licences, what curation kept and dropped, captions and their cost."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from brickreel.telemetry.project import ProjectFiles

Rows = Sequence[Mapping[str, Any]]


def summarise(project: ProjectFiles) -> dict[str, Any]:
    """The part of the summary that is about the data."""
    cut = [row for row in project.cut if row["outcome"] == "ok"]
    return {
        "funnel": _funnel(project, cut),
        "films": _films(project.films),
        "licences": _licences(project.films, cut),
        "curation": _curation(project.clips),
        "splits": _counted((row["split"], row) for row in cut if row["kind"] == "clip"),
        "cadences": _counted((row["cadence"], row) for row in cut if row["kind"] == "clip"),
        "captions": _captions(project),
        "buckets": _buckets(project.encoded),
    }


def _counted(rows: Iterable[tuple[str | None, Mapping[str, Any]]], name: str = "name") -> list[dict[str, Any]]:
    """How many rows have each value."""
    counts: Counter[str | None] = Counter()
    for value, row in rows:
        counts[value] += row["count"]
    return [{name: value or "unknown", "count": count} for value, count in counts.most_common()]


def _count(rows: Iterable[Mapping[str, Any]]) -> int:
    return sum(row["count"] for row in rows)


def _funnel(project: ProjectFiles, cut: Rows) -> list[dict[str, Any]]:
    """How many survived each stage; a stage that has left nothing is not in it."""
    counts: list[tuple[str, str, int, int]] = []
    if project.films:
        readable = sum(row["outcome"] == "ok" for row in project.films)
        counts.append(("ingest", "films that can be read", readable, len(project.films)))
    if project.clips:
        counts.append(("curate", "candidate clips kept", _ok(project.clips), _count(project.clips)))
    if project.cut:
        clips = [row for row in project.cut if row["kind"] == "clip"]
        counts.append(("cut", "clips written", _ok(clips), _count(clips)))
        stills = [row for row in project.cut if row["kind"] == "still"]
        if stills:
            counts.append(("cut", "stills written", _ok(stills), _count(stills)))
    if project.captions:
        counts.append(("caption", "clips and stills described", _ok(project.captions), _count(project.captions)))
    if project.encoded:
        counts.append(("encode", "samples encoded", _ok(project.encoded), _count(project.encoded)))
    return [{"stage": stage, "what": what, "ok": ok, "of": of} for stage, what, ok, of in counts]


def _ok(rows: Rows) -> int:
    return _count(row for row in rows if row["outcome"] == "ok")


def _films(films: Rows) -> dict[str, Any]:
    ok = [row for row in films if row["outcome"] == "ok"]
    return {
        "total": len(films),
        "ok": len(ok),
        "hours": sum(row["duration_s"] or 0 for row in ok) / 3600,
        "frames": sum(row["frames"] or 0 for row in ok),
        "variable_rate": sum(bool(row["variable_rate"]) for row in ok),
        "refused": [
            {
                "title": row["title"] or row["path"] or row["url"] or "?",
                "outcome": row["outcome"],
                "reason": row["reason"],
            }
            for row in films
            if row["outcome"] != "ok"
        ],
        "list": [
            {
                "title": row["title"] or row["path"] or row["url"] or row["film_id"],
                "channel": row["channel"],
                "rights_holder": row["rights_holder"],
                "licence": row["licence"],
                "url": row["url"],
                "minutes": (row["duration_s"] or 0) / 60,
                "width": row["width"],
                "height": row["height"],
                "fps": row["fps"],
            }
            for row in ok
        ],
    }


def _licences(films: Rows, cut: Rows) -> list[dict[str, Any]]:
    table: dict[str, dict[str, Any]] = defaultdict(lambda: {"films": 0, "hours": 0.0, "clips": 0})
    for row in films:
        if row["outcome"] == "ok":
            entry = table[row["licence"] or "none stated"]
            entry["films"] += 1
            entry["hours"] += (row["duration_s"] or 0) / 3600
    for row in cut:
        if row["kind"] == "clip":
            table[row["licence"] or "none stated"]["clips"] += row["count"]
    return [{"licence": name, **entry} for name, entry in sorted(table.items(), key=lambda item: -item[1]["clips"])]


def _curation(clips: Rows) -> dict[str, Any]:
    kept = [row for row in clips if row["outcome"] == "ok"]
    poses = _sum(kept, "poses") or 0
    return {
        "candidates": _count(clips),
        "kept": _count(kept),
        "kept_minutes": (_sum(kept, "seconds") or 0) / 60,
        "poses": poses,
        "frames_per_pose": (_sum(kept, "frames") or 0) / poses if poses else None,
        "dropped": _counted(
            ((row["reason"] or "no reason given", row) for row in clips if row["outcome"] != "ok"), "reason"
        ),
    }


def _captions(project: ProjectFiles) -> dict[str, Any]:
    rows, ledger = project.captions, project.ledger
    ok = [row for row in rows if row["outcome"] == "ok"]
    count = _count(ok)
    paid = {name: _sum(rows, name) for name in ("tokens_in", "tokens_out")}
    return {
        "ok": count,
        **{outcome: _count(row for row in rows if row["outcome"] == outcome) for outcome in ("dropped", "failed")},
        "reasons": _counted((row["reason"], row) for row in rows if row["outcome"] != "ok"),
        "models": _counted((row["model"], row) for row in ok),
        "sources": _counted((row["source"], row) for row in ok),
        "words_mean": (_sum(ok, "words") or 0) / count if count else None,
        **({name: ledger[name] for name in paid} if ledger["requests"] else paid),
        "requests": ledger["requests"],
        "usd": _sum(rows, "usd") if ledger["usd"] is None else ledger["usd"],
        "usd_forecast": project.caption_forecast_usd,
        "latency_mean_s": ledger["latency_mean_s"],
        "examples": [{"clip_id": row["clip_id"], "text": row["text"]} for row in project.examples],
    }


def _sum(rows: Rows, name: str) -> float | None:
    known = [row[name] for row in rows if row[name] is not None]
    return sum(known) if known else None


def _buckets(encoded: Rows) -> list[dict[str, Any]]:
    table: Counter[tuple[str, str]] = Counter()
    for row in encoded:
        if row["outcome"] == "ok":
            table[row["bucket"] or "?", row["split"] or "?"] += row["count"]
    names = sorted({bucket for bucket, _ in table})
    return [{"bucket": name, "train": table[name, "train"], "heldout": table[name, "heldout"]} for name in names]
