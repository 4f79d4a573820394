"""Write clips and stills: one pass per film, frame counts verified, finished clips kept over restarts."""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from brickreel import files, tables
from brickreel.cluster import exits
from brickreel.config import Config, Cut
from brickreel.films import adopt, cutting, dataset, isolated, withdrawn
from brickreel.progress import Bar
from brickreel.stages import Shard
from brickreel.stages.curate import OUTPUT as CLIP_TABLE
from brickreel.stages.ingest import OUTPUT as SOURCES
from brickreel.stages.ingest import FileState

logger = logging.getLogger("brickreel")

OUTPUT = Path("results/cut/index.parquet")
CLIPS = Path("results/cut/clips")
STILLS = Path("results/cut/stills")
# What was written with which settings: clips of an interrupted shard are not written again.
FINISHED = Path("results/cut/finished")
# The same of clips that are adopted: what was measured.
ADOPTED = Path("results/cut/adopted")

_HEX = set("0123456789abcdef")
_KEPT = ("clip_id", "film_id", "holds", "fps", "pose_rate", "cadence", "split")
_FACTS = ("title", "channel", "url", "licence", "rights_holder")


def run(config: Config, shard: Shard = Shard()) -> None:  # noqa: B008  (frozen)
    """Write results/cut/index.parquet/{shard}.parquet, the clips and the stills.

    Raises ValueError when too large a share of the shard's clips could not be written, OSError when the disk is full
    or a film's file is out of reach for a reason that passes.
    """
    output = OUTPUT / f"{shard.name}.parquet"
    tables.remove_parts(OUTPUT, shard.count)
    if config.cut.adopt:
        rows = _adopt(config.cut, config.cut.adopt, shard)
        tables.write("cut_index", output, rows)
    else:
        rows = _cut(config.cut, shard)
        tables.write("cut_index", output, rows)
        dataset.describe(CLIPS, OUTPUT)
    clips = [row for row in rows if row["kind"] == "clip"]
    failed = [row for row in clips if row["outcome"] == "failed"]
    logger.info("cut %s: %d clips, %d failed", shard.name, len(clips) - len(failed), len(failed))
    if len(failed) > config.cut.max_failed_share * len(clips):
        raise ValueError(
            f"{len(failed)} of {len(clips)} clips could not be written, more than `cut.max_failed_share` allows; "
            f"the first, {failed[0]['clip_id']}: {failed[0]['reason']}"
        )


def _adopt(settings: Cut, table: Path, shard: Shard) -> list[dict[str, Any]]:
    lines = [line for line in adopt.read(table) if shard.owns(line["path"])]
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    gone = withdrawn.film_ids()
    journal = Adopted(ADOPTED / f"{shard.name}.jsonl", shard)
    with Bar(f"cut {shard.name}", len(lines), "clips") as bar:
        for line in lines:
            if adopt.film_id(Path(line["path"])) not in gone:
                rows += _adopted(line, settings, seen, journal)
            bar.advance()
    journal.keep({row["clip_id"] for row in rows if row["outcome"] == "ok"})
    return rows


def _adopted(line: dict[str, str], settings: Cut, seen: set[str], journal: "Adopted") -> list[dict[str, Any]]:
    """Rows of one line of the table, measured now or by an attempt before."""
    path = Path(line["path"])
    if not os.path.exists(path):
        # Raises where the clip is not gone but its file system is away.
        exits.unopened(os.path.realpath(path))
    # Before it is read: what changes meanwhile is read again next time.
    state = FileState.of(path) if path.is_file() else None
    rows = adopt.rows(line, settings, STILLS, seen, journal.find(state) if state else None)
    if state and rows[0]["outcome"] == "ok":
        journal.add(state, rows[0])
    return rows


class Adopted:
    """A shard's clips of another tool that are measured, by the state of their file: JSON lines, one file per shard.

    All files are read, since the shards may have been others.
    """

    def __init__(self, path: Path, shard: Shard) -> None:
        self.path = path
        self.all = [line for line in _lines(path) if "clip_id" in line and shard.owns(line["path"])]
        self.lines = {line["path"]: line for line in self.all}

    def find(self, state: FileState) -> dict[str, Any] | None:
        """Facts of a clip, if its file is still the same and its still is there."""
        line = self.lines.get(state.path, {})
        if any(line.get(name) != value for name, value in state._asdict().items()):
            return None
        if not set(adopt.FACTS) <= set(line) or not adopt.still_of(line["clip_id"], STILLS).is_file():
            return None
        return {name: line[name] for name in adopt.FACTS}

    def add(self, state: FileState, row: Mapping[str, Any]) -> None:
        """Put down a clip, unless it is there already."""
        line = {**state._asdict(), **{name: row[name] for name in adopt.FACTS}}
        if self.lines.get(state.path) != line:
            self.lines[state.path] = line
            self.all.append(line)
            files.append_json_line(self.path, line)

    def keep(self, clip_ids: set[str]) -> None:
        """Leave only these in the shard's file, and remove the stills of the others."""
        lines = [line for line in self.lines.values() if line["clip_id"] in clip_ids]
        files.write_text(self.path, "".join(files.json_line(line) for line in lines))
        for clip_id in {line["clip_id"] for line in self.all} - clip_ids:
            adopt.still_of(clip_id, STILLS).unlink(missing_ok=True)


def _cut(settings: Cut, shard: Shard) -> list[dict[str, Any]]:
    clip_rows, film_rows = (
        tables.owned(name, path, "film_id", shard.owns, where=pc.field("outcome") == "ok").to_pylist()
        for name, path in (("clips", CLIP_TABLE), ("sources", SOURCES))
    )
    films: dict[str, list[dict[str, Any]]] = {}
    for clip in clip_rows:
        films.setdefault(clip["film_id"], []).append(clip)
    _tidy(shard, {clip["clip_id"] for clip in clip_rows})
    facts = {row["film_id"]: row for row in film_rows}
    journal = Journal(FINISHED / f"{shard.name}.jsonl", shard)
    rows: list[dict[str, Any]] = []
    with Bar(f"cut {shard.name}", sum(map(len, films.values())), "clips") as bar:
        for film_id, clips in films.items():
            clips.sort(key=lambda clip: clip["start_frame"])
            written = _film(facts.get(film_id), clips, settings, journal, bar)
            for clip, one in zip(clips, written, strict=True):
                rows += _rows(clip, one, settings)
    journal.keep({row["clip_id"] for row in rows})
    return rows


def _film(
    film: Mapping[str, Any] | None, clips: Sequence[Mapping[str, Any]], settings: Cut, journal: "Journal", bar: Bar
) -> list[cutting.Written]:
    """One result per clip: those of the attempt before, and those written now."""
    if film is None:
        bar.advance(len(clips))
        reason = "its film is no longer among the sources: run curate again"
        return [cutting.Written(clip["clip_id"], reason) for clip in clips]
    shown = cutting.Film(film["path"], film["sample_aspect"], film["rotation"], film["interlaced"])
    recipe = cutting.Recipe(settings.short_side, settings.crf, settings.preset, settings.threads)
    pieces = [piece(clip, settings.time) for clip in clips]
    keys = {one.clip_id: key(one, shown, recipe) for one in pieces}
    done = {one.clip_id: one for one in (journal.find(*pair) for pair in keys.items()) if one}
    bar.advance(len(done), note=Path(film["path"]).name)
    missing = [one for one in pieces if one.clip_id not in done]

    def watch(written: Iterable[cutting.Written]) -> None:
        for one in written:
            done[one.clip_id] = one
            bar.advance(1, note=Path(film["path"]).name)
            if not one.reason:
                journal.add(keys[one.clip_id], one)

    reason = ""
    if missing:
        limits = isolated.Limits(**settings.limits.model_dump())
        shown = shown._replace(path=str(Path(shown.path).resolve()))
        try:
            isolated.call(
                cutting.cut, (shown, missing, recipe, str(CLIPS.resolve()), str(STILLS.resolve())), limits, watch
            )
        except ValueError as error:
            reason = exits.unopened(os.path.realpath(film["path"])) or str(error)
            logger.info("cut: %s: failed: %s", film["path"], reason)
    return [done.get(one.clip_id) or cutting.Written(one.clip_id, reason) for one in pieces]


def piece(clip: Mapping[str, Any], time: str) -> cutting.Piece:
    """Which frames a clip of the table `clips` shows, in poses or with its holds."""
    start, end = clip["start_frame"], clip["end_frame"]
    poses, holds = np.array(clip["pose_frames"]), np.array(clip["holds"])
    rate = clip["fps"]
    if time == "poses":
        frames, repeats, rate = poses, np.ones(len(poses), np.int64), clip["pose_rate"]
    elif holds.sum() == end - start:
        frames, repeats = np.arange(start, end), np.ones(end - start, np.int64)
    else:
        # The frame rate varies: each pose is written for as long as it is seen.
        frames, repeats = poses, holds
    return cutting.Piece(clip["clip_id"], frames, repeats, clip["still_frame"], rate, tuple(clip["crop"]))


def key(piece: cutting.Piece, film: cutting.Film, recipe: cutting.Recipe) -> str:
    """Names everything that decides a clip's bytes, apart from the film's content, which the clip's id names."""
    # The film may lie elsewhere by now, and threads do not change what is seen.
    facts = repr((piece[3:], film[1:], recipe[:3])).encode()
    return sha256(b"|".join([piece.frames.tobytes(), piece.repeats.tobytes(), facts])).hexdigest()[:16]


class Journal:
    """A shard's clips that are finished, with the key of their making: JSON lines, one file per shard.

    All files are read, since the shards may have been others.
    """

    def __init__(self, path: Path, shard: Shard) -> None:
        self.path = path
        mine = (line for line in _lines(path) if "clip_id" in line and shard.owns(line["clip_id"][:16]))
        self.lines = {line["clip_id"]: line for line in mine}

    def find(self, clip_id: str, key: str) -> cutting.Written | None:
        """What was written under this key, if both files are still there in their size."""
        line = self.lines.get(clip_id)
        if not line or line["key"] != key or line["bytes"] != _bytes(clip_id):
            return None
        return cutting.Written(**{name: line[name] for name in cutting.Written._fields})

    def add(self, key: str, written: cutting.Written) -> None:
        """Put down a finished clip."""
        line = {"key": key, "bytes": _bytes(written.clip_id), **written._asdict()}
        self.lines[written.clip_id] = line
        files.append_json_line(self.path, line)

    def keep(self, clip_ids: set[str]) -> None:
        """Leave only these in the shard's file."""
        lines = [line for clip_id, line in self.lines.items() if clip_id in clip_ids]
        files.write_text(self.path, "".join(files.json_line(line) for line in lines))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of all files beside a journal, its own last: of a clip that others name as well they are the newest."""
    for part in sorted(path.parent.glob("*.jsonl"), key=lambda part: (part == path, part)):
        yield from files.read_json_lines(part)


def _bytes(clip_id: str) -> list[int]:
    paths = (CLIPS / f"{clip_id}.mp4", STILLS / f"{clip_id}.jpg")
    return [path.stat().st_size if path.is_file() else -1 for path in paths]


def _rows(clip: Mapping[str, Any], written: cutting.Written, settings: Cut) -> list[dict[str, Any]]:
    """The clip's row of the manifest, and its still's."""
    row: dict[str, Any] = dict.fromkeys(tables.SCHEMAS["cut_index"].names)
    row |= {name: clip[name] for name in (*_KEPT, *_FACTS)}
    outcome = "failed" if written.reason else "ok"
    row |= {"width": written.width, "height": written.height, "outcome": outcome, "reason": written.reason}
    moving = {
        "kind": "clip",
        "path": str(CLIPS / f"{written.clip_id}.mp4"),
        "frames": written.frames,
        "in_poses": settings.time == "poses",
        "sha256": written.sha256 or None,
    }
    still = {
        "kind": "still",
        "path": str(STILLS / f"{written.clip_id}.jpg"),
        "frames": 1,
        "holds": None,
        "in_poses": False,
        "sha256": written.still_sha256 or None,
    }
    return [row | moving, row | still]


def _tidy(shard: Shard, clip_ids: set[str]) -> None:
    """Remove the shard's clips that are no longer chosen, and what an interruption left: the folder is the dataset."""
    for folder in (CLIPS, STILLS):
        for path in folder.iterdir() if folder.is_dir() else ():
            unfinished = path.name.startswith(".")
            clip_id = path.name.lstrip(".") if unfinished else path.stem
            film_id = clip_id[:16]
            if set(film_id) - _HEX or not shard.owns(film_id) or (clip_id in clip_ids and not unfinished):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif unfinished or path.suffix in (".mp4", ".jpg"):
                path.unlink(missing_ok=True)
