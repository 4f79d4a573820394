"""export: a folder that diffusers loads, with model card and dataset card.

Writes `results/export/{run}/`: transformer, autoencoder, text encoder, tokenizer, the pipeline's code, README.md with
the run's settings and metrics, DATASET.md with every film, its licence and rights holder. The folder appears whole.
"""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from brickreel import config as configuration
from brickreel import files, tables
from brickreel.evaluation import cards
from brickreel.training import final
from brickreel.training.buckets import data_key

logger = logging.getLogger("brickreel")

RESULTS = Path("results")
CUT = RESULTS / "cut" / "index.parquet"
CAPTIONS = RESULTS / "caption" / "captions.parquet"
ENCODED = RESULTS / "encode" / "index.parquet"


def run(config: configuration.Config, run: str) -> None:
    """Write the folder of one finished run.

    Raises FileNotFoundError before training has ended, or when a part of the base model is missing.
    """
    from brickreel.evaluation import generate
    from brickreel.models import folder, load

    settings, which = config.run(run), config.export.weights
    facts = gather(run, settings, which)
    target = RESULTS / "export" / run
    transformer = load.transformer(str(RESULTS / "train" / run / "final" / which))
    beside = {
        "README.md": cards.model_card(config, run, facts),
        "DATASET.md": cards.dataset_card(config, run, facts),
        generate.DEFAULTS: json.dumps(generate.sampling(config.sample, settings.objective), indent=2) + "\n",
    }
    folder.write(target, transformer, config.base, settings.objective, beside)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    logger.info("export %s: %s, %s weights of step %d, %.1f MB", run, target, which, facts["step"], size / 1e6)
    unlicensed = sum(row["films"] for row in facts["licences"] if row["licence"] in ("none stated", "unlicensed"))
    if unlicensed:
        logger.warning("export %s: %d films have no licence: see DATASET.md before you publish it", run, unlicensed)


def gather(run: str, settings: configuration.Run, which: str) -> dict[str, Any]:
    """What the cards say of a finished run. Raises FileNotFoundError when it is not finished."""
    trained = RESULTS / "train" / run
    about = final.read(trained)
    if about is None:
        raise FileNotFoundError(f"{trained / 'final'} is not complete: run `brickreel train --run {run}` to its end")
    shown = cards.films(_shown(settings))
    captions = tables.read("captions", CAPTIONS).to_pylist() if CAPTIONS.exists() else []
    return {
        "weights": which,
        "step": about["step"],
        "samples": about["samples"],
        "scores": cards.scores_of(_optional(RESULTS / "evaluate" / run / "scores.json"), which),
        "gauge": cards.gauge_of(tables.read_log("gauge", trained / "gauge.jsonl").to_pylist(), which),
        "films": shown,
        "heldout": sum(film["split"] == "heldout" for film in shown),
        "licences": cards.licences(shown),
        "captioners": cards.captioners(captions),
        "fingerprint": (_optional(trained / "dataset.json") or {}).get("fingerprint", "unknown"),
    }


def _shown(settings: configuration.Run) -> list[dict[str, Any]]:
    """Rows of the cut index whose clip or still was encoded for this run."""
    encoded = tables.read(
        "encode_index", ENCODED, ["clip_id", "kind", "data_keys"], where=pc.field("outcome") == "ok"
    ).to_pylist()
    key = data_key(settings.data)
    wanted = {(row["clip_id"], row["kind"]) for row in encoded if key in (row["data_keys"] or ())}
    cut = tables.read("cut_index", CUT, where=pc.field("outcome") == "ok").to_pylist()
    return [row for row in cut if (row["clip_id"], row["kind"]) in wanted]


def _optional(path: Path) -> Any:
    return files.read_json(path) if path.is_file() else None
