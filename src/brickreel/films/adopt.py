"""Entering in the middle: a folder of finished clips with a table, as Open-Sora's tools and text2bricks write it.

The clips stay where they are. Their files are measured, since what such tables say of frames and rates was read off
headers; holds are found as in films, so that clips of a tool that repeats frames are shown in pose time all the same.
"""

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from brickreel import files, tables
from brickreel.config import Cut
from brickreel.films import cadence, cutting, isolated, probe, signals

# Columns of Open-Sora's tables. What is measured here is not taken from them; further columns are ignored.
COLUMNS = ("path", "text", "num_frames", "height", "width", "aspect_ratio", "fps", "resolution")
_FACTS = ("title", "channel", "url", "licence", "rights_holder")
# What a clip's file alone decides of its row.
FACTS = ("clip_id", "sha256", "frames", "holds", "fps", "pose_rate", "cadence", "width", "height")
# Open-Sora's cutter names clips {film}_scene-{number}.
_SCENE = "_scene-"


def read(table: Path) -> Iterator[dict[str, str]]:
    """Lines of the table, `path` relative to the working folder. Raises ValueError that names the line."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.DictReader(stream, strict=True)
            if "path" not in (lines.fieldnames or ()):
                raise ValueError(f"{table} needs the column path; Open-Sora's tables have {', '.join(COLUMNS)}")
            for line in lines:
                if not line["path"]:
                    raise ValueError(f"{table}, line {lines.line_num}: the path is empty")
                known = {name: value or "" for name, value in line.items() if name}
                yield known | {"path": str(table.parent / line["path"])}
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {table}: `cut.adopt` names the table of finished clips") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table} is not a CSV table in UTF-8: {error}") from None


def rows(
    line: dict[str, str], settings: Cut, stills: Path, seen: set[str], known: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Rows of the table `cut_index` for one clip and its still, which is written into `stills`.

    `seen` holds the paths of earlier lines: a clip that is listed twice is used once. `known` are the FACTS that
    an earlier run found, where the file has not changed and the still is there.
    """
    path = Path(line["path"])
    row: dict[str, Any] = dict.fromkeys(tables.SCHEMAS["cut_index"].names)
    row |= {name: line.get(name) or None for name in (*_FACTS, "text")}
    row |= {"path": str(path), "kind": "clip", "in_poses": False, "outcome": "ok", "reason": ""}
    row |= {"clip_id": _hash(line["path"]), "film_id": film_id(path), "licence": row["licence"] or "unlicensed"}
    if line["path"] in seen:
        return [row | {"outcome": "dropped", "reason": "is listed twice"}]
    seen.add(line["path"])
    if not path.is_file():
        return [row | {"outcome": "failed", "reason": "there is no such file"}]
    try:
        row |= known or _facts(path, line["path"], settings, stills)
    except ValueError as error:
        return [row | {"outcome": "failed", "reason": str(error)}]
    row["split"] = "heldout" if held_out(row["film_id"], settings.adopt_heldout_share) else "train"
    still = still_of(row["clip_id"], stills)
    picture = {"kind": "still", "path": str(still), "frames": 1, "holds": None, "sha256": files.sha256(still)}
    return [row, row | picture]


def _facts(path: Path, name: str, settings: Cut, stills: Path) -> dict[str, Any]:
    """FACTS of a clip, with its still written."""
    # Named after path and content: another clip in its place is another clip.
    digest = files.sha256(path)
    clip_id = _hash(name + digest)
    found = isolated.call(measure, (str(path.resolve()),), isolated.Limits(**settings.limits.model_dump()))
    files.write_bytes(still_of(clip_id, stills), found.pop("jpeg"))
    return {"clip_id": clip_id, "sha256": digest, **found}


def still_of(clip_id: str, stills: Path) -> Path:
    """Where a clip's still is."""
    return stills / f"{clip_id}.jpg"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def film_id(path: Path) -> str:
    """Clips that were cut from one film have one id, where their names tell; else each is its own film."""
    film, scene, _ = path.stem.rpartition(_SCENE)
    return _hash(str(path.parent / film) if scene else str(path))


def held_out(film_id: str, share: float) -> bool:
    """Whether a film is held out: by its id, so that all its clips are, and new films change nothing."""
    return files.draw_of(film_id) < share


def measure(path: str, progress: Any) -> dict[str, Any]:
    """What a clip's file holds, by decoding it: size, rate, holds, and its middle pose as JPEG. For `isolated.call`."""
    facts = probe.probe(path)
    found = signals.read(path, network="off", watch=progress)
    scores, flicker = np.asarray(found.hold_score, np.float32), np.asarray(found.flicker, np.float32)
    new = cadence.new_poses(scores, flicker)
    poses = np.flatnonzero(new)
    timing = cadence.cadence(new, facts.fps)
    shape = (facts.height, facts.width) if facts.rotation % 180 else (facts.width, facts.height)
    return {
        "frames": len(found),
        "holds": np.diff(np.append(poses, len(new))).tolist(),
        "fps": facts.fps,
        "pose_rate": timing.pose_rate,
        "cadence": timing.label,
        # As it is stored, but upright: pixels that are not square stay so.
        "width": shape[0],
        "height": shape[1],
        "jpeg": cutting.still_of(path, int(poses[len(poses) // 2]), shape, facts.rotation),
    }
