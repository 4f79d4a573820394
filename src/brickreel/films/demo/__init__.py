"""The demo's films: stop-motion scenes of toy bricks, drawn by the project itself, and the truth about every frame.

Besides the films a folder gets `sources.csv`, which the ingest stage reads, and `truth.json`, which no stage reads:
tests and benchmarks compare against it. `truth.json` holds, per film, `path, title, fps, width, height, frames, crop`
(left, top, right, bottom), `time_s` (per frame), `shots` (`start, end, kind, scene, description, cadence, pose_frames,
holds, pose_rate, ...`), `transitions` (`kind, start, end`) and `poses` (per frame, -1 inside a dissolve); `repeats`
pairs shots that show the same scene in two films; `faults` names the broken files. Frames count in decoding order from
0, ends are exclusive, a cut has `start == end`: the first frame after it.
"""

import csv
import io
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import cv2

from brickreel import files
from brickreel.films.demo import broken, footage
from brickreel.films.demo.screenplay import FPS, Film, Shot, Title, screenplay
from brickreel.films.demo.writing import write
from brickreel.progress import Bar

COLUMNS = ("path", "url", "title", "channel", "licence", "rights_holder")
WIDTH, HEIGHT = 640, 360
CPUS = 2


def render(
    out: str | os.PathLike[str],
    seed: int = 0,
    films: Sequence[int] | None = None,
    scale: float = 1.0,
    shots: int | None = None,
    poses: int | None = None,
    with_broken: bool = True,
    processes: int | None = None,
) -> dict[str, Any]:
    """Write the demo's films, `sources.csv` and `truth.json` into the folder `out`; returns the truth.

    `films` chooses films by number (0 is the first); `scale` multiplies 640 x 360; `shots` and `poses` bound the shots
    per film and the poses per shot; all of them make small sets for tests. The same arguments give the same bytes,
    however many processes draw. Raises ValueError for a size below 64 x 36 or a film that does not exist.
    """
    if scale < 0.1:
        raise ValueError(f"scale is {scale}: films smaller than 64 x 36 show nothing, give at least 0.1")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    plays = screenplay(seed)
    if wrong := [index for index in films or () if not 0 <= index < len(plays)]:
        raise ValueError(f"there are {len(plays)} demo films, numbered from 0; {wrong} are not among them")
    chosen = [_shortened(plays[index], shots, poses) for index in (range(len(plays)) if films is None else films)]
    size = (max(2, round(WIDTH * scale / 2) * 2), max(2, round(HEIGHT * scale / 2) * 2))
    truths = _draw_all(folder, chosen, size, processes or min(CPUS, len(os.sched_getaffinity(0))))
    faults = broken.write_all(folder, folder / chosen[0].name, seed) if with_broken else []
    truth = {"seed": seed, "fps": FPS, "films": truths, "repeats": _repeats(truths), "faults": faults}
    files.write_json(folder / "truth.json", truth)
    _write_sources(folder, [(t["path"], t["title"]) for t in truths] + [(f["path"], f["title"]) for f in faults])
    return truth


def _shortened(film: Film, shots: int | None, poses: int | None) -> Film:
    kept: list[Shot | Title] = []
    for part in film.parts:
        if isinstance(part, Shot):
            if shots is not None and sum(isinstance(other, Shot) for other in kept) >= shots:
                continue
            part = Shot(**{**vars(part), "poses": min(part.poses, poses or part.poses)})
        kept.append(part)
    return Film(**{**vars(film), "parts": tuple(kept)})


def _draw_all(folder: Path, films: Sequence[Film], size: tuple[int, int], processes: int) -> list[dict[str, Any]]:
    jobs = [(folder / film.name, film, size) for film in films]
    with Bar("demo-films", len(jobs), "films") as bar:
        if processes == 1 or len(jobs) == 1:
            truths = []
            for job in jobs:
                truths.append(_draw(*job))
                bar.advance(note=job[1].name)
            return truths
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            pending = [pool.submit(_draw, *job) for job in jobs]
            for future, job in zip(pending, jobs, strict=True):
                future.result()
                bar.advance(note=job[1].name)
            return [future.result() for future in pending]


def _draw(path: Path, film: Film, size: tuple[int, int]) -> dict[str, Any]:
    """Draw and write one film; its truth."""
    cv2.setNumThreads(1)
    width, height = size
    truth = footage.Truth()
    count = write(path, footage.frames(film, width, height, truth), FPS, film.crf)
    bars = round(height * film.letterbox / 2)
    return {
        "path": film.name,
        "title": film.title,
        "fps": FPS,
        "width": width,
        "height": height,
        "frames": count,
        "crop": [0, bars, width, height - bars],
        "letterbox": bool(bars),
        "variable_rate": film.variable_rate,
        "time_s": [tick / FPS for tick in truth.ticks],
        "shots": truth.shots,
        "transitions": truth.transitions,
        "poses": truth.poses,
    }


def _repeats(truths: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of shots in different films that show the same scene with the same seed."""
    first: dict[int, dict[str, Any]] = {}
    pairs = []
    for truth in truths:
        for shot in truth["shots"]:
            if shot["kind"] != "scene":
                continue
            here = {"path": truth["path"], "start": shot["start"], "end": shot["end"]}
            if shot["seed"] in first:
                pairs.append({"first": first[shot["seed"]], "second": here})
            first.setdefault(shot["seed"], here)
    return pairs


def _write_sources(folder: Path, rows: Sequence[tuple[str, str]]) -> None:
    """The list of films as the ingest stage reads it; paths are relative to the list."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for path, title in rows:
        table.writerow([path, "", title, "brickreel demo", "CC0-1.0", "the brickreel project"])
    files.write_text(folder / "sources.csv", text.getvalue())


@click.command("demo-films")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False), help="Folder for films, sources.csv, truth.json."
)
@click.option("--seed", default=0, show_default=True, help="Another seed draws other films.")
@click.option("--scale", default=1.0, show_default=True, help="Size of the pictures; 1 is 640 x 360.")
@click.option("--shots", default=None, type=int, help="At most this many shots per film.")
@click.option("--poses", default=None, type=int, help="At most this many poses per shot.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(out: str, seed: int, scale: float, shots: int | None, poses: int | None, debug: bool) -> None:
    """Render the demo's stop-motion films."""
    from brickreel.running import guarded, set_up_logging

    set_up_logging()
    guarded("demo-films", debug, lambda: summarise(out, render(out, seed, None, scale, shots, poses)))


def summarise(out: str, truth: dict[str, Any]) -> None:
    """One line on what was written."""
    seconds = sum(film["time_s"][-1] for film in truth["films"])
    scenes = sum(shot["kind"] == "scene" for film in truth["films"] for shot in film["shots"])
    click.echo(
        f"{len(truth['films'])} films, {seconds / 60:.1f} minutes, {scenes} shots, and {len(truth['faults'])} broken "
        f"files in {out}"
    )
