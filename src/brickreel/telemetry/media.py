"""Large media beside the page: sampled videos and contact sheets, copied so that the report's folder stands alone."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brickreel import files
from brickreel.telemetry.project import RunFiles

MOST_STEPS = 5
MOST_ROWS = 12


def collect(run: RunFiles, folder: Path) -> dict[str, Any]:
    """Copy what the page shows of a run into `folder`, and describe it as a grid: rows of prompts, columns of steps.

    The base model, the last checkpoint and a few between are shown; how many are left out is said.
    """
    steps = sorted({row["step"] for row in run.samples})
    shown = _spread(steps, MOST_STEPS)
    keys = list(dict.fromkeys((row["prompt_id"], row["seed"], bool(row["conditional"])) for row in run.samples))
    # Prompts before condition-free samples, in the order in which they were written.
    keys.sort(key=lambda key: not key[2])
    rows = [_row(run, key, shown, folder) for key in keys[:MOST_ROWS]]
    sheet = _copy(run.sheet, folder / run.name / "sheet.jpg", folder) if run.sheet else None
    nearest = _copy(run.nearest, folder / run.name / "nearest.jpg", folder) if run.nearest else None
    return {
        "steps": shown,
        "rows": rows,
        "sheet": sheet,
        "nearest": nearest,
        "steps_left_out": len(steps) - len(shown),
        "rows_left_out": max(0, len(keys) - MOST_ROWS),
    }


def _spread(steps: Sequence[int], most: int) -> list[int]:
    if len(steps) <= most:
        return list(steps)
    return sorted({steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)})


def _row(run: RunFiles, key: tuple[str, int, bool], steps: Sequence[int], folder: Path) -> dict[str, Any]:
    prompt_id, seed, conditional = key
    cells, prompt = [], ""
    for step in steps:
        found = [
            row
            for row in run.samples
            if (row["prompt_id"], row["seed"], bool(row["conditional"]), row["step"]) == (*key, step)
        ]
        # EMA weights are what is exported: where both were sampled, they are shown.
        found.sort(key=lambda row: row["weights"] == "raw")
        row = found[0] if found else None
        prompt = prompt or (row["prompt"] if row else "") or ""
        cells.append(_cell(run, row, step, prompt_id, folder))
    return {"prompt": prompt, "prompt_id": prompt_id, "seed": seed, "conditional": conditional, "cells": cells}


def _cell(run: RunFiles, row: Mapping[str, Any] | None, step: int, prompt_id: str, folder: Path) -> dict[str, Any]:
    if row is None:
        return {"src": None, "reason": "not sampled"}
    if row["outcome"] != "ok" or not row["path"]:
        return {"src": None, "reason": row["reason"] or row["outcome"]}
    source = Path(row["path"])
    name = re.sub(r"[^A-Za-z0-9._-]", "_", f"{prompt_id}-{row['seed']}{'' if row['conditional'] else '-free'}")
    target = folder / run.name / f"step-{step:08d}" / f"{name}{source.suffix or '.mp4'}"
    copied = _copy(source, target, folder)
    return {
        "src": copied,
        "poster": _poster(target, folder) if copied else None,
        "reason": None if copied else "the file is gone",
        "weights": row["weights"],
        "width": row["width"],
        "height": row["height"],
    }


def _poster(video: Path, folder: Path) -> str | None:
    """The video's first picture beside it, for print and for browsers that load no video; None when it has none."""
    import av

    target = video.with_suffix(".jpg")
    if not target.exists() or target.stat().st_mtime < video.stat().st_mtime:
        try:
            with av.open(str(video)) as source, files.replacing(target) as temporary:
                next(source.decode(video=0)).to_image().save(temporary, quality=85)
        except (OSError, StopIteration, av.error.FFmpegError):
            return None
    return (Path(folder.name) / target.relative_to(folder)).as_posix()


def _copy(source: Path, target: Path, folder: Path) -> str | None:
    """Copy unless the same file is there already; the path as the page refers to it. None when there is no source."""
    try:
        there = target.stat() if target.exists() else None
        now = source.stat()
        if there is None or there.st_size != now.st_size or there.st_mtime < now.st_mtime:
            with files.replacing(target) as temporary:
                shutil.copyfile(source, temporary)
    except OSError:
        return None
    return (Path(folder.name) / target.relative_to(folder)).as_posix()
