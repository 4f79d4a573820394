"""`brickreel lineage` and `brickreel withdraw`: what a film went into, and taking it out of the dataset."""

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import pyarrow.compute as pc

from brickreel import tables
from brickreel.evaluation.seen import steps_shown
from brickreel.films import dataset, withdrawn

logger = logging.getLogger("brickreel")

INGEST = Path("results/ingest/sources.parquet")
CURATE = Path("results/curate/clips.parquet")
CUT = Path("results/cut/index.parquet")
CLIPS = Path("results/cut/clips")
CAPTIONS = Path("results/caption/captions.parquet")
ENCODE = Path("results/encode/index.parquet")
TRAIN = Path("results/train")
EXPORT = Path("results/export")
NEAREST = ("evaluate/{}/nearest.jpg", "report/media/{}/nearest.jpg", "compare/*/media/{}/nearest.jpg")
"""Samples beside the training clips that are nearest to them, by run."""


def trace(film: str) -> dict[str, Any]:
    """Everything that a film went into: clips, captions, latents, runs and checkpoints.

    `film` is its id, its path, or the file's name where only one film has it. Raises ValueError when nobody knows it.
    """
    facts = _facts(film)
    film_id = facts["film_id"]
    clips = {row["clip_id"] for row in _rows("clips", CURATE, film_id, ["clip_id"])}
    cut = _rows("cut_index", CUT, film_id, ["clip_id", "kind", "path", "split", "outcome"])
    clips |= {row["clip_id"] for row in cut}
    latents = _rows("encode_index", ENCODE, film_id, ["sample_id", "clip_id", "file", "split", "outcome"])
    clips |= {row["clip_id"] for row in latents} | set(withdrawn.films().get(film_id, {}).get("clips") or ())
    return {
        "film": facts,
        "withdrawn": film_id in withdrawn.film_ids(),
        "clips": sorted(clips),
        "files": [row["path"] for row in cut if row["outcome"] == "ok"],
        "exported": [str(path) for path in sorted(EXPORT.glob(f"*/dataset/*/{film_id}-*")) if path.is_file()],
        "captions": _captions(clips),
        "latents": [{"sample_id": r["sample_id"], "file": r["file"]} for r in latents if r["outcome"] == "ok"],
        "runs": [_run(folder, film_id, clips) for folder in sorted(TRAIN.glob("*")) if folder.is_dir()],
    }


def _facts(film: str) -> dict[str, Any]:
    names = ("film_id", "path", "title", "channel", "url", "licence", "rights_holder")
    lists = [(name, path) for name, path in (("sources", INGEST), ("cut_index", CUT)) if path.exists()]
    here = str(Path(film).relative_to(Path.cwd())) if Path(film).is_relative_to(Path.cwd()) else film
    path, film_id = pc.field("path"), pc.field("film_id")
    known = pc.is_valid(film_id)
    for where in (
        (film_id == film) | (path.isin([film, here]) & known),
        pc.match_substring_regex(path, rf"(^|/){re.escape(film)}$") & known,
    ):
        for name, table in lists:
            found = {
                row["film_id"]: row for row in tables.read(name, table, columns=list(names), where=where).to_pylist()
            }
            if len(found) > 1:
                raise ValueError(
                    f"{len(found)} films are called '{film}': give the id of one, {', '.join(sorted(found))}"
                )
            if found:
                return next(iter(found.values()))
    gone = withdrawn.films().get(film)
    if gone:
        return dict.fromkeys(names) | {"film_id": film, "title": gone.get("title")}
    if not lists:
        raise ValueError(f"there is no {INGEST} in {Path.cwd()}: start from the project's folder, after `ingest`")
    raise ValueError(f"no film has the id, path or name '{film}': {INGEST} lists them")


def _rows(name: str, path: Path, film_id: str, columns: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return tables.read(name, path, columns=columns, where=pc.field("film_id") == film_id).to_pylist()


def _captions(clips: set[str]) -> list[dict[str, Any]]:
    if not CAPTIONS.exists() or not clips:
        return []
    where = pc.field("clip_id").isin(sorted(clips)) & (pc.field("outcome") == "ok")
    return tables.read("captions", CAPTIONS, columns=["clip_id", "kind", "text", "source"], where=where).to_pylist()


def _run(folder: Path, film_id: str, clips: set[str]) -> dict[str, Any]:
    """Steps of a run that were shown the film, and the checkpoints that were written after the first of them."""
    steps = steps_shown(folder, {film_id: clips}).get(film_id, [])
    # Those set aside as step-00000250.damaged hold what they saw all the same.
    checkpoints = [path for path in sorted(folder.glob("checkpoints/step-*")) if path.stem[5:].isdecimal()]
    saw = [str(path) for path in checkpoints if steps and int(path.stem[5:]) >= steps[0]]
    results = [folder / "final", EXPORT / folder.name]
    return {
        "run": folder.name,
        "steps": len(steps),
        "first_step": steps[0] if steps else None,
        "last_step": steps[-1] if steps else None,
        "checkpoints": saw + [str(path) for path in results if steps and path.exists()],
    }


def withdraw(film: str) -> dict[str, Any]:
    """Take a film out of the dataset: its clips, stills, latents and rows of the manifest go; it is never chosen again.

    So do the pictures of training clips that are nearest to samples, for runs that were shown the film.

    Returns its lineage as it was. The film itself and the checkpoints are left alone; an exported dataset that holds
    its clips goes as a whole, and `export` writes it again.
    """
    traced = trace(film)
    film_id = traced["film"]["film_id"]
    withdrawn.add(film_id, traced["film"]["title"], traced["clips"])
    for part in tables.files_of(CUT):
        rows = tables.read("cut_index", part)
        kept = rows.filter(pc.not_equal(rows["film_id"], film_id))
        if kept.num_rows < rows.num_rows:
            tables.write("cut_index", part, kept)
    for path in filter(_ours, traced["files"]):
        Path(path).unlink(missing_ok=True)
    _remove_latents(set(traced["clips"]))
    # They may show the film; they are not made again by themselves.
    for run in traced["runs"]:
        for pattern in NEAREST if run["steps"] else ():
            for path in Path("results").glob(pattern.format(run["run"])):
                path.unlink()
    for exported in {Path(path).parent.parent for path in traced["exported"]}:
        shutil.rmtree(exported)
    if CLIPS.is_dir():
        dataset.describe(CLIPS, CUT)
    return traced


def _ours(path: str) -> bool:
    """Whether `cut` wrote this file: adopted clips lie in a folder of the user's, and stay there."""
    return Path(path).is_relative_to(CUT.parent)


def _remove_latents(clips: set[str]) -> None:
    """Also from files that the index no longer names for these clips: they stay as long as others need them."""
    from safetensors import SafetensorError

    from brickreel.training import latents

    for path in sorted(ENCODE.parent.glob("*.safetensors")):
        try:
            latents.remove_clips(path, clips)
        except SafetensorError as error:
            logger.warning("%s cannot be read (%s): delete it, it may hold latents of the film", path, error)


def as_text(traced: dict[str, Any]) -> str:
    """The lineage for a person."""
    film = traced["film"]
    lines = [f"{film['film_id']}  {film['title'] or ''}  {film['path'] or ''}".rstrip()]
    lines.append(f"licence {film['licence'] or 'unknown'}, rights holder {film['rights_holder'] or 'unknown'}")
    if traced["withdrawn"]:
        lines.append("withdrawn from the dataset")
    for name in ("clips", "captions", "latents", "exported"):
        lines.append(f"{len(traced[name])} {name}")
        lines += [f"  {_line(item)}" for item in traced[name]]
    for run in traced["runs"]:
        lines.append(_run_line(run))
        lines += [f"  {path}" for path in run["checkpoints"]]
    return "\n".join(lines)


def _line(item: Any) -> str:
    return item if isinstance(item, str) else "  ".join(str(value) for value in item.values())


def _run_line(run: dict[str, Any]) -> str:
    if not run["steps"]:
        return f"run {run['run']} was never shown it"
    last, first = run["last_step"], run["first_step"]
    return f"run {run['run']} was shown it in {run['steps']} steps, {first} to {last}; checkpoints that saw it:"


def seen_by(traced: dict[str, Any]) -> Iterable[str]:
    """Paths of all checkpoints that saw the film."""
    return (path for run in traced["runs"] for path in run["checkpoints"])


def _command(
    name: str, purpose: str, work: Callable[[str], dict[str, Any]], show: Callable[[dict[str, Any]], str]
) -> Any:
    @click.command(name, help=purpose)
    @click.option(
        "--film", required=True, help="The film's id, path or file name; results/ingest/sources.parquet lists them."
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    def command(film: str, as_json: bool, debug: bool) -> None:
        from brickreel.running import guarded, set_up_logging

        def call() -> None:
            traced = work(film)
            click.echo(json.dumps(traced) if as_json else show(traced))

        set_up_logging()
        guarded(name, debug, call)

    return command


def _farewell(traced: dict[str, Any]) -> str:
    saw = list(seen_by(traced))
    deleted = list(filter(_ours, traced["files"]))
    lines = [
        f"{traced['film']['film_id']} is out of the dataset: {len(deleted)} clips and stills and all its latents "
        f"are gone, and it stands in {withdrawn.LIST}.",
        "Run snakemake to make captions, latents and plan again without it.",
    ]
    if left := len(traced["files"]) - len(deleted):
        lines.insert(1, f"{left} adopted clips were left where they lie: they are yours.")
    if traced["exported"]:
        sets = sorted({str(Path(path).parent.parent) for path in traced["exported"]})
        lines.append(f"Removed with it, until `brickreel export` writes it again: {', '.join(sets)}")
    if saw:
        lines += ["Checkpoints that saw it, which are left as they are:", *(f"  {path}" for path in saw)]
    else:
        lines.append("No checkpoint saw it.")
    return "\n".join(lines)


lineage_command = _command(
    "lineage", "List what a film went into: clips, captions, latents, checkpoints.", trace, as_text
)
withdraw_command = _command(
    "withdraw",
    "Delete a film's clips and latents, and exported datasets with them; name the checkpoints that saw it.",
    withdraw,
    _farewell,
)
