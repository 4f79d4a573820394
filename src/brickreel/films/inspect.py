"""`brickreel inspect FILM`: what brickreel would make of one film, without a project."""

import json
import os
from pathlib import Path
from typing import Any

import click
import numpy as np

from brickreel import config
from brickreel.films import cadence, candidates, filters, probe, signals


def inspect(path: str | os.PathLike[str], settings: config.Config) -> dict[str, Any]:
    """Shots with their timing and clips with their outcome. Frames count from 0 in decoding order, ends are exclusive.

    Raises FileNotFoundError, or ValueError when the film cannot be decoded.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no film {path}{': it is a folder' if Path(path).is_dir() else ''}")
    try:
        facts = probe.probe(path)
        found = signals.read(path, settings.analyze.height, settings.analyze.transnet, settings.analyze.threads)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    clips = candidates.find(_frames(found, facts), _films(facts), settings.curate)
    return {
        "film": os.fspath(path),
        "frames": len(found),
        "fps": facts.fps,
        "shots": [_shot(shot, found, facts) for shot in found.shots],
        "clips": [
            {
                "start": int(clips.start[clip]),
                "end": int(clips.end[clip]),
                "poses": int(clips.poses[clip]),
                "outcome": "dropped" if reason else "ok",
                "reason": str(reason),
            }
            for clip, reason in enumerate(filters.reasons(clips, settings.curate))
        ],
    }


def _shot(shot: Any, found: signals.Signals, facts: probe.Probe) -> dict[str, Any]:
    inside = slice(shot.start, shot.end)
    times = np.array(found.time_s[shot.start : shot.end + 1])
    timing = cadence.cadence(found.new_pose[inside], facts.fps, times if facts.variable_rate else None)
    return {
        "start": shot.start,
        "end": shot.end,
        "transition_in": shot.transition_in,
        "label": timing.label,
        "pose_rate": round(timing.pose_rate, 3),
        "poses": (shot.start + np.flatnonzero(found.new_pose[inside])).tolist(),
    }


def _films(facts: probe.Probe) -> candidates.Films:
    columns = (facts.fps, facts.variable_rate, facts.width, facts.height)
    return candidates.Films(*(np.array([value]) for value in columns))


def _frames(found: signals.Signals, facts: probe.Probe) -> candidates.Frames:
    """One film's signals as the columns that clips are found in."""
    transition = np.array(found.transition)
    return candidates.Frames(
        film=np.zeros(len(found), np.int64),
        frame=np.arange(len(found)),
        time_s=np.array(found.time_s),
        blend=np.isin(transition, ("dissolve", "fade")),
        cut=transition == "cut",
        new_pose=found.new_pose,
        crop=np.array(found.crop, np.int32).reshape(-1, 4),
        phash=np.array(found.phash, np.uint64),
        values={name: np.array(getattr(found, name)) for name in (*candidates.MEANS, *candidates.INNER_MEANS)},
    )


def as_text(report: dict[str, Any]) -> str:
    """The report for a person."""
    lines = [f"{report['film']}: {report['frames']} frames at {report['fps']:g} per second", "", "shots"]
    for shot in report["shots"]:
        lines.append(
            f"  {shot['start']:>7} - {shot['end']:>7}  after {shot['transition_in']:<8}  {shot['label']:<7}"
            f"  {len(shot['poses']):>5} poses, {shot['pose_rate']:.2f} per second"
        )
    lines += ["", "clips"]
    for clip in report["clips"]:
        lines.append(
            f"  {clip['start']:>7} - {clip['end']:>7}  {clip['poses']:>5} poses  {clip['outcome']:<7} {clip['reason']}"
        )
    return "\n".join(lines)


@click.command("inspect")
@click.argument("film", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON: shots with their pose frames, clips with reasons.")
@click.option(
    "--config",
    "configs",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="Settings. Default: config.yaml where there is one.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(film: str, as_json: bool, configs: tuple[str, ...], debug: bool) -> None:
    """Show what brickreel would make of one film: shots, holds, clips."""
    from brickreel.running import guarded, set_up_logging

    def show() -> None:
        default = ("config.yaml",) if Path("config.yaml").is_file() else ()
        report = inspect(film, config.load(*(configs or default)))
        click.echo(json.dumps(report) if as_json else as_text(report))

    set_up_logging()
    guarded("inspect", debug, show)
