"""export: a folder that diffusers loads, with model card and dataset card.

Writes `results/export/{run}/`: transformer, autoencoder, text encoder, tokenizer, the pipeline's code, README.md with
the run's settings and metrics, DATASET.md with every film, its licence and rights holder. The folder appears whole.
Inside it `dataset/` holds the run's clips with their captions, as a `videofolder` that `datasets` loads.
"""

import csv
import json
import logging
import os
import shutil
from collections.abc import Sequence
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
DATASET = "dataset"
# What the dataset's table tells of a clip, besides its file and its caption.
COLUMNS = ("clip_id", "film_id", "frames", "fps", "pose_rate", "cadence", "width", "height",
           "title", "channel", "url", "licence", "rights_holder")  # fmt: skip


def run(config: configuration.Config, run: str, push: str = "", push_dataset: str = "") -> None:
    """Write the folder of one finished run, and send it to a hub when a name there is given.

    Args:
        push: repository for the model, such as "owner/name", in place of the settings'. It is made, as a private one,
            where there is none.
        push_dataset: the same for the clips.

    Raises FileNotFoundError before training has ended, or when a part of the base model is missing; OSError when the
    hub refuses.
    """
    from brickreel.evaluation import generate
    from brickreel.models import folder, load

    settings, settings_of_export = config.run(run), config.export
    which = settings_of_export.weights
    push, push_dataset = push or settings_of_export.push or "", push_dataset or settings_of_export.push_dataset or ""
    facts = gather(run, settings, which)
    target = RESULTS / "export" / run
    transformer = load.transformer(str(RESULTS / "train" / run / "final" / which))
    beside = {
        "README.md": cards.model_card(config, run, facts),
        "DATASET.md": cards.dataset_card(config, run, facts),
        generate.DEFAULTS: json.dumps(generate.sampling(config.sample, settings.objective), indent=2) + "\n",
    }
    folder.write(target, transformer, config.base, settings.objective, beside)
    if settings_of_export.dataset or push_dataset:
        shown = [row for row in _shown(settings) if row["kind"] == "clip" and Path(row["path"] or "").is_file()]
        write_dataset(target / DATASET, shown, run, beside["DATASET.md"])
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    logger.info("export %s: %s, %s weights of step %d, %.1f MB", run, target, which, facts["step"], size / 1e6)
    unlicensed = sum(row["films"] for row in facts["licences"] if row["licence"] in ("none stated", "unlicensed"))
    if unlicensed:
        logger.warning("export %s: %d films have no licence: see DATASET.md before you publish it", run, unlicensed)
    if push:
        send(target, push, "model")
    if push_dataset:
        send(target / DATASET, push_dataset, "dataset")


def write_dataset(target: Path, rows: Sequence[dict[str, Any]], run: str, card: str) -> None:
    """The clips of the cut index's `rows` by split, each with metadata.csv: file, caption, rights, rates.

    Files are linked where the file system can, so that they take no room twice.
    """
    texts = captions_of(rows)
    splits = sorted({row["split"] for row in rows}, reverse=True)
    for split in splits:
        (target / split).mkdir(parents=True, exist_ok=True)
        with (target / split / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(["file_name", "text", *COLUMNS])
            for row in rows:
                if row["split"] == split:
                    source = Path(row["path"])
                    # Adopted clips of two folders may have one name.
                    name = row["clip_id"] + source.suffix
                    _link(source, target / split / name)
                    table.writerow([name, texts.get(row["clip_id"], ""), *(row[name] for name in COLUMNS)])
    files.write_text(target / "README.md", cards.dataset_front(run, splits) + card)


def captions_of(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Clip -> what was encoded for it: the caption stage's text, else the one that came with an adopted dataset."""
    texts = {row["clip_id"]: row["text"] for row in rows if row["text"]}
    if CAPTIONS.exists():
        made = tables.read("captions", CAPTIONS, ["clip_id", "kind", "text"], where=pc.field("outcome") == "ok")
        texts |= {row["clip_id"]: row["text"] for row in made.to_pylist() if row["kind"] == "clip" and row["text"]}
    return texts


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise  # a copy would be written into what the link leads to
    except OSError:
        shutil.copyfile(source, target)


def send(folder: Path, repository: str, kind: str) -> None:
    """Upload a folder to a repository of the hub that HF_ENDPOINT names, with the token of `hf auth login` or HF_TOKEN.

    Raises ValueError for a name that is none, OSError when the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # What the library's HTTP client raises where nobody answers; which client it is changes between versions.
    unreachable: tuple[Any, ...] = HfHubHTTPError.__bases__
    hub = HfApi(library_name="brickreel")
    try:
        hub.create_repo(repository, repo_type=kind, private=True, exist_ok=True)
        # The clips have a repository of their own, and other licences than the model.
        left_out = [f"{DATASET}/**"] if kind == "model" else None
        done = hub.upload_folder(
            repo_id=repository, repo_type=kind, folder_path=folder, ignore_patterns=left_out,
            commit_message="Exported by brickreel",
        )  # fmt: skip
    except HFValidationError as error:
        raise ValueError(f"'{repository}' is no name of a repository: {error}") from error
    except (OSError, *unreachable) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(f"{folder} is written, but could not be sent to {repository}: {reason}") from error
    logger.info("export: %s is at %s", folder, done)


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
        "energy": energy(run),
        "fingerprint": (_optional(trained / "dataset.json") or {}).get("fingerprint", "unknown"),
    }


def energy(run: str) -> dict[str, Any]:
    """Hours and energy of the run's training, measured, from the same summary that the report shows."""
    from brickreel.telemetry import digest, project, recorder, summary

    told = summary.assemble(project.one_run(run), digest.read_all(recorder.FOLDER, [], only=("train", run)))
    one = told[0]["runs"][0]
    return {"wall_hours": one["wall_hours"], "gpu_hours": one["gpu_hours"], "gpu": one["gpu_name"], **one["energy"]}


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
