"""export: a folder that diffusers loads, with model card and dataset card.

Writes `results/export/{run}/`: transformer, autoencoder, text encoder, tokenizer, the pipeline's code, README.md with
the run's settings and metrics, DATASET.md with every film, its licence and rights holder. The folder appears whole.
Inside it `dataset/` holds the run's clips with their captions, as a `videofolder` that `datasets` loads.
"""

import csv
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from brickreel import config as configuration
from brickreel import files, tables
from brickreel.evaluation import cards, seen
from brickreel.films import withdrawn
from brickreel.training import final
from brickreel.training.buckets import concerning, data_key, fingerprint, read_index, rows_of, split_of

logger = logging.getLogger("brickreel")

RESULTS = Path("results")
CUT = RESULTS / "cut" / "index.parquet"
CAPTIONS = RESULTS / "caption" / "captions.parquet"
ENCODED = RESULTS / "encode" / "index.parquet"
DATASET = "dataset"
# What the dataset's table tells of a clip, besides its file and its caption.
COLUMNS = ("clip_id", "film_id", "frames", "fps", "pose_rate", "cadence", "width", "height",
           "title", "channel", "url", "licence", "rights_holder")  # fmt: skip
# Batches of clips that are written together: each time all captions are read for theirs. About a million clips.
BATCHES = 128

_GOOD = pc.field("outcome") == "ok"
_CLIP = pc.field("kind") == "clip"
_DESCRIBED = _GOOD & (pc.field("text") != "")


def run(config: configuration.Config, run: str, push: str = "", push_dataset: str = "") -> None:
    """Write the folder of one finished run, and send it to a hub when a name there is given.

    Args:
        push: repository for the model, such as "owner/name", in place of the settings'. It is made, as a private one,
            where there is none.
        push_dataset: the same for the clips.

    Raises FileNotFoundError before training has ended, or when a part of the base model is missing; ValueError when the
    dataset holds nothing of the run's any more; OSError when the hub refuses.
    """
    from brickreel.evaluation import generate
    from brickreel.models import folder, load

    settings, settings_of_export = config.run(run), config.export
    which = settings_of_export.weights
    push, push_dataset = push or settings_of_export.push or "", push_dataset or settings_of_export.push_dataset or ""
    facts = gather(config, run)
    target = RESULTS / "export" / run
    transformer = load.transformer(str(RESULTS / "train" / run / "final" / which))
    beside = {
        "README.md": cards.model_card(config, run, facts),
        "DATASET.md": cards.dataset_card(config, run, facts),
        generate.DEFAULTS: json.dumps(generate.sampling(config.sample, settings.objective), indent=2) + "\n",
    }

    def add_clips(fresh: Path) -> None:
        if settings_of_export.dataset or push_dataset:
            clips = _shown(settings, [*COLUMNS, "kind", "path", "split", "text"], _GOOD & _CLIP)
            write_dataset(fresh / DATASET, clips, run, beside["DATASET.md"])

    folder.write(target, transformer, config.base, settings.objective, beside, add_clips)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    logger.info("export %s: %s, %s weights of step %d, %.1f MB", run, target, which, facts["step"], size / 1e6)
    unlicensed = sum(row["films"] for row in facts["licences"] if row["licence"] in ("none stated", "unlicensed"))
    if unlicensed:
        logger.warning("export %s: %d films have no licence: see DATASET.md before you publish it", run, unlicensed)
    for remark in facts["remarks"]:
        logger.warning("export %s: %s", run, remark)
    if cards.only_before(facts["scores"]):
        asked = which in config.sample.weights
        why = "none of their videos could be scored" if asked else "sample.weights left them out"
        logger.warning("export %s: the card has no scores of the %s weights: %s", run, which, why)
    if push:
        send(target, push, "model")
    if push_dataset:
        send(target / DATASET, push_dataset, "dataset")


def write_dataset(target: Path, clips: Iterator[pa.RecordBatch], run: str, card: str) -> None:
    """Clips of the cut index by split, each with metadata.csv: file, caption, rights, rates.

    Files are linked where the file system can, so that they take no room twice. A clip whose file is gone is left out.
    """
    lists: dict[str, Any] = {}
    with ExitStack() as opened:
        while part := list(itertools.islice(clips, BATCHES)):
            texts = captions_of(pa.Table.from_batches(part))
            for row in itertools.chain.from_iterable(batch.to_pylist() for batch in part):
                source = Path(row["path"] or "")
                if not source.is_file():
                    continue
                folder = target / row["split"]
                if row["split"] not in lists:
                    lists[row["split"]] = opened.enter_context(_metadata(folder))
                # Adopted clips of two folders may have one name.
                name = row["clip_id"] + source.suffix
                _link(source, folder / name)
                lists[row["split"]].writerow([name, texts.get(row["clip_id"], ""), *(row[name] for name in COLUMNS)])
    files.write_text(target / "README.md", cards.dataset_front(run, sorted(lists, reverse=True)) + card)


@contextmanager
def _metadata(folder: Path) -> Iterator[Any]:
    """A writer of a folder's metadata.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["file_name", "text", *COLUMNS])
        yield table


def captions_of(clips: pa.Table) -> dict[str, str]:
    """Clip -> what was encoded for it: the caption stage's text, else the one that came with an adopted dataset."""
    texts = dict(zip(clips["clip_id"].to_pylist(), clips["text"].to_pylist(), strict=True))
    if CAPTIONS.exists():
        columns = ["clip_id", "kind", "text", "outcome"]
        made = tables.owned("captions", CAPTIONS, "clip_id", texts.__contains__, _DESCRIBED & _CLIP, columns)
        texts |= dict(zip(made["clip_id"].to_pylist(), made["text"].to_pylist(), strict=True))
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


def gather(config: configuration.Config, run: str) -> dict[str, Any]:
    """What the cards say of a finished run.

    Raises FileNotFoundError when it is not finished, ValueError when there are no clips of the run's to tell of.
    """
    settings, which, trained = config.run(run), config.export.weights, RESULTS / "train" / run
    about = final.read(trained)
    if about is None:
        raise FileNotFoundError(f"{trained / 'final'} is not complete: run `brickreel train --run {run}` to its end")
    told = ("film_id", "kind", "split", *cards.PROVENANCE)
    films = cards.films(tables.tally(_shown(settings, ["clip_id", *told]), told))
    if not films:
        raise ValueError(
            f"{ENCODED} holds no clip for run '{run}', so that its cards could not tell what it was trained on: was it"
            " encoded again for other runs or settings? Put them back (project.runs, runs) and encode again"
        )
    datasets = _datasets(trained / "dataset.json", about["step"])
    present = fingerprint(split_of(rows_of(read_index(ENCODED, _GOOD), settings.data), "train").rows)
    return {
        "weights": which,
        "step": about["step"],
        "samples": about["samples"],
        "scores": cards.scores_of(_optional(RESULTS / "evaluate" / run / "scores.json"), which, about["step"]),
        "gauge": cards.gauge_of(tables.read_log("gauge", trained / "gauge.jsonl").to_pylist(), which, about["step"]),
        "films": films,
        "heldout": sum(film["split"] == "heldout" for film in films),
        "licences": cards.licences(films),
        "captioners": cards.captioners(_captioners(settings)),
        "energy": energy(run),
        "fingerprint": ", then ".join(datasets) or "unknown",
        "present": present,
        "remarks": cards.remarks(datasets, present, *_shown_since(config, run, about["step"])),
    }


def _datasets(path: Path, step: int) -> list[str]:
    """Fingerprints of the datasets that training was shown up to a step, in their order."""
    about = _optional(path) or {}
    rows = about.get("datasets") or [about]
    return list(dict.fromkeys(row["fingerprint"] for row in rows if row and row.get("first_step", 1) <= step))


def _shown_since(
    config: configuration.Config, run: str, step: int
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Films that training was shown and that have been withdrawn, or are held out, since; with the steps."""
    gone = {film: about.get("clips") or () for film, about in withdrawn.films().items()}
    gone = dict.fromkeys(config.curate.withdrawn, ()) | gone
    rows = _shown(config.run(run), ["clip_id", "film_id", "kind", "split"], _GOOD & (pc.field("split") == "heldout"))
    held = seen.films_of(rows)
    found = seen.in_training(run, held | gone, step)
    return {film: found[film] for film in found if film in gone}, {film: found[film] for film in found if film in held}


def energy(run: str) -> dict[str, Any]:
    """Hours and energy of the run's training, measured, from the same summary that the report shows."""
    from brickreel.telemetry import digest, project, recorder, summary

    told = summary.assemble(project.one_run(run), digest.read_all(recorder.FOLDER, [], only=("train", run)))
    one = told[0]["runs"][0]
    return {"wall_hours": one["wall_hours"], "gpu_hours": one["gpu_hours"], "gpu": one["gpu_name"], **one["energy"]}


def _captioners(settings: configuration.Run) -> list[dict[str, Any]]:
    """Who described how many of the run's clips and stills."""
    if not CAPTIONS.exists():
        return []
    columns = ["clip_id", "kind", "model", "source", "text", "outcome"]
    described = tables.batches("captions", CAPTIONS, columns, _DESCRIBED)
    return tables.tally(_encoded(settings, described), ["model", "source"])


def _shown(settings: configuration.Run, columns: Sequence[str], where: Any = _GOOD) -> Iterator[pa.RecordBatch]:
    """Rows of the cut index whose clip or still was encoded for this run."""
    return _encoded(settings, tables.batches("cut_index", CUT, [*columns, "outcome"], where))


def _encoded(settings: configuration.Run, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Those of rows with `clip_id` and `kind` that were encoded for this run."""
    key = data_key(settings.data)
    index = tables.batches("encode_index", ENCODED, ["clip_id", "kind", "data_keys", "outcome"], _GOOD)
    named = [_names(concerning(batch, key, ["clip_id", "kind"])) for batch in index]
    encoded = np.unique(np.concatenate([np.zeros(0, np.int64), *named]))
    for batch in batches:
        names = _names(batch)
        found = np.searchsorted(encoded, names, "left") < np.searchsorted(encoded, names, "right")
        yield batch.filter(pa.array(found))


def _names(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """A hash per clip or still: the names of 100 million take 20 GB. Two of so many agree in one project of 1,000."""
    pairs = zip(batch["clip_id"].to_pylist(), batch["kind"].to_pylist(), strict=True)
    return np.fromiter(map(hash, pairs), np.int64, len(batch))


def _optional(path: Path) -> Any:
    return files.read_json(path) if path.is_file() else None
