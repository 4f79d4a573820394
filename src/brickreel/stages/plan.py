"""plan: forecast steps, memory, hours, energy and money of a run before anything is submitted.

Writes `results/plan/{run}/plan.json`, buckets included, which training reads back. Refuses a run that would have
nothing to show, or that cannot fit into the GPUs that `slurm/site.env` names.
"""

import logging
import os
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from brickreel import config as configuration
from brickreel import files, tables
from brickreel.cluster.site_env import SITE_ENV, assignments
from brickreel.evaluation import machine, planning
from brickreel.evaluation.machine import Machine
from brickreel.models import load
from brickreel.telemetry.peaks import bf16_tflops
from brickreel.training import cautions
from brickreel.training.buckets import plan_buckets, read_index

logger = logging.getLogger("brickreel")

INDEX = Path("results/encode/index.parquet")
CAPTIONS = Path("results/caption/captions.parquet")


def run(config: configuration.Config, run: str) -> None:
    """Forecast one run.

    Raises ValueError when no clip is left, a prompt is too long for the model, or the run does not fit into memory;
    FileNotFoundError before `encode`.
    """
    settings = config.run(run)
    buckets = plan_buckets(read_index(INDEX), settings)
    index = tables.read("encode_index", INDEX, ["text_tokens"])
    model = planning.Model.read(load.locate("transformer", **config.base.transformer.model_dump()), settings.lora)
    site = machine.from_environment(assignments(SITE_ENV) | dict(os.environ))
    work = planning.Work.of(buckets, settings, model, _text_tokens(index, settings, config.encode, model))
    encoders = planning.encoder_bytes(config.base, config.encode, bool(site.gpu)) if settings.online else None
    plan = {
        "run": run,
        "buckets": buckets.to_json(),
        "clips": {"used": buckets.used, "heldout": buckets.heldout, "dropped": dict(buckets.dropped)},
        **planning.sizes(work),
        **planning.disk(work, settings, _encoded_bytes()),
        **planning.memory(work, settings, site, encoders),
        **planning.cost(work, settings, config.plan, site, bf16_tflops(site.gpu)),
        "captioning_usd": _captioning(),
        "warnings": cautions.of(settings, site.gpus or 1),
    }
    files.write_json(Path("results/plan") / run / "plan.json", plan)
    _say(run, plan, site)


def _text_tokens(index: Any, settings: configuration.Run, encode: configuration.Encode, model: planning.Model) -> int:
    """The longest prompt: batches are padded to it. Raises ValueError where the model takes no such prompt."""
    encoded = pc.max(index["text_tokens"]).as_py()
    longest, most = int(encoded or encode.text_tokens), int(model.sizes.model_max_length)
    # Training would end at the first such caption, which may be days away.
    if longest > most and (encoded or settings.online):
        raise ValueError(
            f"a prompt may have {longest} text tokens here, but the model takes {most}: set `encode.text_tokens` to"
            f" {most} or less{' and run encode again' if encoded else ''}"
        )
    return longest


def _encoded_bytes() -> int | None:
    """Size of the latents and embeddings that stand on disk; None where the index names files that are not here."""
    columns = ["file", "text_file"]
    named = tables.tally(tables.batches("encode_index", INDEX, columns), columns)
    names = {row[column] for row in named for column in columns if row[column]}
    paths = [path if path.is_file() else INDEX.parent / path for path in map(Path, sorted(names))]
    if not paths or not all(path.is_file() for path in paths):
        return None
    return sum(path.stat().st_size for path in paths)


def _captioning() -> dict[str, Any]:
    """What the captions have cost; paid once for all runs."""
    if not CAPTIONS.exists():
        return {"value": None, "reason": f"not known: there is no {CAPTIONS} (captions came with the dataset?)"}
    return {"value": round(pc.sum(tables.read("captions", CAPTIONS, ["usd"])["usd"]).as_py() or 0.0, 4), "reason": None}


def _say(run: str, plan: dict[str, Any], site: Machine) -> None:
    """The forecast in a few lines of the log."""
    clips, dropped = plan["clips"], sum(plan["clips"]["dropped"].values())
    logger.info("plan %s: %d clips and stills used, %d not", run, clips["used"], dropped)
    for note in plan["buckets"]["notes"]:
        logger.info("plan %s: %s", run, note)
    for warning in plan["warnings"]:
        logger.warning("plan %s: %s", run, warning)
    logger.info(
        "plan %s: %d steps, %.3g epochs, %.3g TFLOP and %d tokens per step, %.3g GiB per rank",
        run,
        plan["steps"],
        plan["epochs"],
        plan["flops_per_step"] / 1e12,
        plan["tokens_per_step"],
        plan["memory_gib"]["total"],
    )
    for name, unit in (("wall_h", "h"), ("gpu_hours", "GPU-h"), ("energy_kwh", "kWh"), ("usd", "USD")):
        part = plan[name]
        if part["value"] is None:
            logger.info("plan %s: %s: %s", run, name, part["reason"])
        else:
            logger.info(
                "plan %s: %s: %.3g %s (%.3g to %.3g)", run, name, part["value"], unit, part["low"], part["high"]
            )
