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
        "splits": _counted(row["split"] for row in cut if row["kind"] == "clip"),
        "cadences": _counted(row["cadence"] for row in cut if row["kind"] == "clip"),
        "captions": _captions(project),
        "buckets": _buckets(project.encoded),
    }


def _counted(values: Iterable[str | None]) -> list[dict[str, Any]]:
    return [{"name": name or "unknown", "count": count} for name, count in Counter(values).most_common()]


def _funnel(project: ProjectFiles, cut: Rows) -> list[dict[str, Any]]:
    """How many survived each stage; a stage that has left nothing is not in it."""
    counts: list[tuple[str, str, int, int]] = []
    if project.films:
        counts.append(("ingest", "films that can be read", _ok(project.films), len(project.films)))
    if project.clips:
        counts.append(("curate", "candidate clips kept", _ok(project.clips), len(project.clips)))
    if project.cut:
        clips = [row for row in project.cut if row["kind"] == "clip"]
        counts.append(("cut", "clips written", _ok(clips), len(clips)))
        stills = [row for row in project.cut if row["kind"] == "still"]
        if stills:
            counts.append(("cut", "stills written", _ok(stills), len(stills)))
    if project.captions:
        counts.append(("caption", "clips and stills described", _ok(project.captions), len(project.captions)))
    if project.encoded:
        counts.append(("encode", "samples encoded", _ok(project.encoded), len(project.encoded)))
    return [{"stage": stage, "what": what, "ok": ok, "of": of} for stage, what, ok, of in counts]


def _ok(rows: Rows) -> int:
    return sum(row["outcome"] == "ok" for row in rows)


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
            table[row["licence"] or "none stated"]["clips"] += 1
    return [{"licence": name, **entry} for name, entry in sorted(table.items(), key=lambda item: -item[1]["clips"])]


def _curation(clips: Rows) -> dict[str, Any]:
    reasons = Counter(row["reason"] or "no reason given" for row in clips if row["outcome"] != "ok")
    kept = [row for row in clips if row["outcome"] == "ok"]
    poses = sum(len(row["pose_frames"] or ()) for row in kept)
    frames = sum(max((row["end_frame"] or 0) - (row["start_frame"] or 0), 0) for row in kept)
    return {
        "candidates": len(clips),
        "kept": len(kept),
        "kept_minutes": sum(
            (row["end_frame"] - row["start_frame"]) / row["fps"] for row in kept if row["fps"] and row["end_frame"]
        )
        / 60,
        "poses": poses,
        "frames_per_pose": frames / poses if poses else None,
        "dropped": [{"reason": reason, "count": count} for reason, count in reasons.most_common()],
    }


def _captions(project: ProjectFiles) -> dict[str, Any]:
    rows = project.captions
    ok = [row for row in rows if row["outcome"] == "ok"]
    spent = [row for row in project.ledger if row["usd"] is not None]
    usd = sum(row["usd"] for row in spent) if spent else _sum(row["usd"] for row in rows)
    words = [len((row["text"] or "").split()) for row in ok]
    return {
        "ok": len(ok),
        "failed": len(rows) - len(ok),
        "reasons": _counted(row["reason"] for row in rows if row["outcome"] != "ok"),
        "models": _counted(row["model"] for row in ok),
        "sources": _counted(row["source"] for row in ok),
        "words_mean": sum(words) / len(words) if words else None,
        "tokens_in": _sum(row["tokens_in"] for row in project.ledger or rows),
        "tokens_out": _sum(row["tokens_out"] for row in project.ledger or rows),
        "requests": len(project.ledger),
        "usd": usd,
        "usd_forecast": project.caption_forecast_usd,
        "latency_mean_s": _mean(row["latency_s"] for row in project.ledger),
        "examples": [{"clip_id": row["clip_id"], "text": row["text"]} for row in _spread(ok, 3)],
    }


def _spread(rows: Rows, count: int) -> Rows:
    """Rows from all over the table, not its first ones."""
    clips = [row for row in rows if row["kind"] == "clip"] or list(rows)
    clips = sorted(clips, key=lambda row: row["clip_id"])
    return [clips[index * len(clips) // count] for index in range(min(count, len(clips)))]


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _buckets(encoded: Rows) -> list[dict[str, Any]]:
    table: dict[tuple[str, str], int] = Counter(
        (row["bucket"] or "?", row["split"] or "?") for row in encoded if row["outcome"] == "ok"
    )
    names = sorted({bucket for bucket, _ in table})
    return [
        {"bucket": name, "train": table.get((name, "train"), 0), "heldout": table.get((name, "heldout"), 0)}
        for name in names
    ]
