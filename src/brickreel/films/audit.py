"""The page "why was my clip dropped?": thumbnails by reason, offline, in one file."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from jinja2 import Environment, PackageLoader

from brickreel import files
from brickreel.config import Curate
from brickreel.films import filters
from brickreel.films.signals import THUMBNAIL_PERIOD


def write(path: Path, clips: pa.Table, failed: Mapping[str, str], signals: Sequence[Path], settings: Curate) -> None:
    """Write the page. `signals` are the part files with the thumbnails, `failed` maps names of films to reasons."""
    slim = clips.drop_columns(["pose_frames", "holds"]).append_column(
        "poses", pc.list_value_length(clips["pose_frames"])
    )
    counts = {row["reason"]: row["clip_id_count"] for row in _count(clips)}
    groups = [_group(slim, reason, counts.get(reason, 0), settings) for reason in ["", *_reasons()]]
    chosen = [clip for group in groups for clip in group["clips"]]
    pictures = _thumbnails(chosen, signals)
    originals = _originals(clips, chosen)
    for clip in chosen:
        clip["original"] = originals.get(clip["duplicate_of"])
        jpeg = pictures.get((clip["film_id"], clip["thumbnail_frame"]))
        clip["thumbnail"] = base64.b64encode(jpeg).decode() if jpeg else None
    environment = Environment(loader=PackageLoader("brickreel.films"), autoescape=True)
    page = environment.get_template("audit.html.j2").render(groups=groups, failed=failed, total=clips.num_rows)
    files.write_text(path, page)


def _originals(clips: pa.Table, chosen: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Where those stand that some of the chosen clips are the same as, by clip_id."""
    wanted = pa.array({clip["duplicate_of"] for clip in chosen} - {None}, pa.string())
    rows = clips.select(["clip_id", "path", "start_frame", "end_frame"]).filter(pc.is_in(clips["clip_id"], wanted))
    return {row["clip_id"]: row for row in rows.to_pylist()}


def _reasons() -> list[str]:
    return [one.reason for one in filters.FILTERS] + list(filters.OTHER_REASONS)


def _count(clips: pa.Table) -> list[dict[str, Any]]:
    return clips.group_by("reason").aggregate([("clip_id", "count")]).to_pylist()


def _group(clips: pa.Table, reason: str, count: int, settings: Curate) -> dict[str, Any]:
    """One reason with its threshold and some of its clips: those nearest to the threshold first."""
    table: dict[str, tuple[str | None, str | None, str]] = {
        one.reason: (one.setting, "poses" if one.score == "pose_frames" else one.score, one.words)
        for one in filters.FILTERS
    }
    table |= {name: (setting, None, words) for name, (setting, words) in filters.OTHER_REASONS.items()}
    setting, score, words = table.get(reason, (None, None, "went on to cut"))
    threshold = getattr(settings, setting) if setting else None
    # A list of films is no threshold.
    threshold = None if isinstance(threshold, tuple) else threshold
    rows = clips.filter(pc.equal(clips["reason"], reason))
    if score:
        far = np.abs(rows[score].to_numpy(zero_copy_only=False) - threshold)
        rows = rows.take(np.argsort(far, kind="stable"))
    shown = rows.slice(0, settings.audit_thumbnails).to_pylist()
    for clip in shown:
        clip["score"] = clip[score] if score else None
        clip["thumbnail_frame"] = _thumbnail_frame(clip)
    return {
        "reason": reason or "kept",
        "count": count,
        "words": words,
        "setting": setting,
        "threshold": threshold,
        "score": score,
        "clips": shown,
    }


def _thumbnail_frame(clip: Mapping[str, Any]) -> int:
    """The frame with a thumbnail that lies nearest to the still, within the clip where it has one."""
    before = clip["still_frame"] // THUMBNAIL_PERIOD * THUMBNAIL_PERIOD
    after = before + THUMBNAIL_PERIOD
    return after if before < clip["start_frame"] and after < clip["end_frame"] else before


def _thumbnails(clips: Sequence[Mapping[str, Any]], signals: Sequence[Path]) -> dict[tuple[str, int], bytes]:
    wanted = {(clip["film_id"], clip["thumbnail_frame"]) for clip in clips}
    if not wanted:
        return {}
    films, frames = (sorted(set(column)) for column in zip(*wanted, strict=True))
    found = ds.dataset([str(part) for part in signals]).to_table(
        columns=["film_id", "frame", "thumbnail"],
        filter=ds.field("film_id").isin(films) & ds.field("frame").isin(frames),
    )
    rows = zip(found["film_id"].to_pylist(), found["frame"].to_pylist(), found["thumbnail"].to_pylist(), strict=True)
    return {(film, frame): jpeg for film, frame, jpeg in rows if (film, frame) in wanted and jpeg}
