"""sample: generate the evaluation prompts with fixed seeds, from the base model and every kept checkpoint.

Writes `results/sample/{run}/step-00000250/` with videos, their table and a contact sheet, step 0 being the base model,
and the grid of all steps side by side, `results/sample/{run}/sheet.jpg`. Ranks share the videos; a finished video is
kept, so that an interrupted stage goes on where it stopped.
"""

import itertools
import logging
import time
from pathlib import Path
from typing import Any

from brickreel import config as configuration
from brickreel import tables
from brickreel.cluster import distributed
from brickreel.cluster.beside import began
from brickreel.evaluation import prompts, sheets
from brickreel.evaluation.generation import Generation
from brickreel.evaluation.jobs import Job, deal, finish, finished, folder, key, owed, recorded
from brickreel.evaluation.weights import available, during
from brickreel.films import video
from brickreel.progress import Bar

logger = logging.getLogger("brickreel")

# Ranks wait for the slowest one before the sheets are drawn; videos of a large model take hours.
LONGEST_WAIT_S = 7 * 24 * 3600.0
# Beyond this share of failed videos the stage fails: the rest would not say anything about the model.
MOST_FAILED = 0.5
POSES_ON_SHEET = 8


def run(config: configuration.Config, run: str, checkpoint: str = "") -> None:
    """Generate the videos that are missing, then write tables and sheets.

    With the name of a `checkpoint` only that one is sampled, while training goes on, and the grid is left alone; there
    is nothing to do where it became the final weights, which have the same step and other videos.

    Raises ValueError when there are no prompts or most videos failed, FileNotFoundError before training has ended.
    """
    texts = prompts.read(config.sample)
    if checkpoint:
        chosen = during(run, config.sample, config.run(run), config.base, checkpoint)
        if not chosen:
            logger.info("sample %s: %s became the final weights, which are sampled with the run", run, checkpoint)
            return
    else:
        chosen = available(run, config.sample, config.run(run), config.base)
    jobs = owed(texts, chosen, config.sample)
    ranks = distributed.start(LONGEST_WAIT_S)
    try:
        mine = [job for job in deal(jobs, ranks.rank, ranks.world_size) if not _done(job, run, config)]
        if mine:
            logger.info("sample %s: %d of %d videos are to be made here", run, len(mine), len(jobs))
            _generate(mine, run, config, ranks.local_rank)
        _wait_for_all(ranks.world_size)
        if ranks.rank == 0:
            by_step = _write_tables(jobs, run, config)
            if not checkpoint:
                _forget_earlier_trainings(run)
                _sheet_of_run(by_step, run, config)
    finally:
        distributed.stop()


def _wait_for_all(world_size: int) -> None:
    if world_size > 1:
        import torch
        import torch.distributed as dist

        # A tensor on the CPU goes through gloo, whose patience `start` has set; a barrier would go through nccl.
        dist.all_reduce(torch.zeros(1))


def _path(job: Job, run: str, config: configuration.Config) -> Path:
    return folder(run, job.weights.step) / f"{job.name(config.sample.weights[0])}.mp4"


def _done(job: Job, run: str, config: configuration.Config) -> bool:
    return finished(_path(job, run, config), key(job, config.sample)) is not None


def _generate(jobs: list[Job], run: str, config: configuration.Config, local_rank: int) -> None:
    machine = Generation(config.base, config.sample, config.run(run), local_rank)
    with Bar(f"sample {run}", len(jobs), "videos") as bar:
        for weights, of_weights in itertools.groupby(jobs, key=lambda job: job.weights):
            broken = machine.use(weights)
            for job in of_weights:
                _make(job, machine, broken, run, config)
                bar.advance(note=f"step {weights.step} {weights.kind}")


def _make(job: Job, machine: Generation, broken: str | None, run: str, config: configuration.Config) -> None:
    """Generate and write one video; a failure becomes a row with its reason."""
    started = time.monotonic()
    frames, reason = (None, broken) if broken else machine.video(job)
    seconds = time.monotonic() - started
    path, hold = _path(job, run, config), config.sample.hold
    if frames is not None:
        video.write(path, frames, config.sample.pose_rate * hold, [hold] * len(frames))
    finish(path, key(job, config.sample), _row(job, path, frames, seconds, reason, config.sample))
    if reason:
        logger.warning("sample %s: %s: %s", run, path.name, reason)


def _row(
    job: Job, path: Path, frames: Any, seconds: float, reason: str | None, settings: configuration.Sample
) -> dict[str, Any]:
    count = 0 if frames is None else len(frames)
    height, width = settings.resolution if frames is None else frames.shape[1:3]
    return {
        "prompt_id": job.prompt_id,
        "prompt": job.prompt,
        "seed": job.seed,
        "step": job.weights.step,
        "weights": job.weights.kind,
        "conditional": job.conditional,
        "length": job.length,
        "path": path.as_posix(),
        "frames": count,
        "height": height,
        "width": width,
        "pose_rate": settings.pose_rate,
        "holds": [settings.hold] * count,
        "sampler": job.weights.sampler(settings),
        "steps": settings.steps,
        "guidance": settings.guidance,
        "seconds": seconds,
        "outcome": "failed" if reason else "ok",
        "reason": reason or "",
    }


def _write_tables(jobs: list[Job], run: str, config: configuration.Config) -> dict[int, list[dict[str, Any]]]:
    """One table and one sheet per step. Returns the rows by step."""
    rows = [recorded(_path(job, run, config), key(job, config.sample)) for job in jobs]
    by_step = {step: [row for row in rows if row["step"] == step] for step in sorted({row["step"] for row in rows})}
    for step, of_step in by_step.items():
        tables.write("samples", folder(run, step) / "samples.parquet", of_step)
        _sheet_of_step(of_step, folder(run, step) / "sheet.jpg", f"{run}, {_step_name(step)}")
    failed = [row for row in rows if row["outcome"] == "failed"]
    if len(failed) > MOST_FAILED * len(rows):
        raise ValueError(f"{len(failed)} of {len(rows)} videos failed; the first one: {failed[0]['reason']}")
    logger.info("sample %s: %d videos in %d steps, %d failed", run, len(rows), len(by_step), len(failed))
    return by_step


def _forget_earlier_trainings(run: str) -> None:
    """Remove the tables of steps that were sampled before the run's training began: another one had this name.

    What was sampled during this training stays, also when the checkpoint is gone.
    """
    since = began(run).get("time_s", 0.0)
    for table in (Path("results/sample") / run).glob("step-*/samples.parquet"):
        if table.stat().st_mtime < since:
            table.unlink()
            logger.info("sample %s: %s is of an earlier training and is left out", run, table.parent.name)


def _step_name(step: int) -> str:
    return f"after {step:,} steps" if step else "base model"


def _usual(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The videos that everything is compared by: with prompt, of the trained length, of the first weights."""
    chosen = [row for row in rows if row["outcome"] == "ok" and row["conditional"] and row["length"] == 1]
    return [row for row in chosen if row["weights"] == chosen[0]["weights"]]


def _sheet_of_step(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    shown = [row for row in rows if row["outcome"] == "ok"]
    if not shown:
        return
    shown, subtitle = sheets.first_rows(shown, _made(shown[0]))
    pictures = [sheets.pictures(row["path"], sheets.spread(sum(row["holds"]), POSES_ON_SHEET)) for row in shown]
    labels = [_label(row) for row in shown]
    sheets.grid(path, pictures, labels, [f"{column + 1}" for column in range(POSES_ON_SHEET)], title, subtitle)


def _label(row: dict[str, Any]) -> str:
    """What tells videos of a prompt apart comes first: a long prompt is cut at its end."""
    extra = [] if row["conditional"] else ["without its prompt"]
    extra += [f"{row['length']} x the length"] if row["length"] > 1 else []
    extra += [row["weights"]] if row["weights"] == "raw" else []
    return f"seed {row['seed']}{''.join(', ' + word for word in extra)}: {_prompt(row)}"


def _prompt(row: dict[str, Any]) -> str:
    return sheets.readable(row["prompt"], row["prompt_id"])


def _made(row: dict[str, Any]) -> str:
    return f"{row['steps']} steps of {row['sampler']}, guidance {row['guidance']:g}, {row['frames']} poses"


def _sheet_of_run(by_step: dict[int, list[dict[str, Any]]], run: str, config: configuration.Config) -> None:
    """Rows are prompts and seeds, columns steps; each cell is the middle pose."""
    columns = {step: {(row["prompt"], row["seed"]): row for row in _usual(rows)} for step, rows in by_step.items()}
    # A video of each row, which has its prompt.
    videos = {of: row for column in columns.values() for of, row in column.items()}
    if not videos:
        raise ValueError("no video with its prompt was made: nothing to put on the sheet")
    any_row = next(row for rows in by_step.values() for row in rows if row["outcome"] == "ok")
    shown, subtitle = sheets.first_rows(list(videos), _made(any_row))
    steps = sheets.some_columns(list(columns))
    grid = [[_middle(columns[step][of]) if of in columns[step] else None for step in steps] for of in shown]
    labels = [f"seed {of[1]}: {_prompt(videos[of])}" for of in shown]
    headings = [f"step {step:,}" if step else "base model" for step in steps]
    path = Path("results/sample") / run / "sheet.jpg"
    sheets.grid(path, grid, labels, headings, f"{run}: before and after fine-tuning", subtitle)


def _middle(row: dict[str, Any]) -> sheets.Picture:
    return sheets.pictures(row["path"], [sum(row["holds"]) // 2])[0]
