"""Encode latents and text embeddings once, in the shapes that the runs want, so that training never waits for them."""

import hashlib
import json
import logging
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from brickreel import tables
from brickreel.cluster import exits
from brickreel.config import Config, RunData
from brickreel.progress import Bar
from brickreel.stages import Shard
from brickreel.training import showing
from brickreel.training.assignment import Material, Shape, assign
from brickreel.training.buckets import data_key

logger = logging.getLogger("brickreel")

CLIPS = Path("results/cut/index.parquet")
CAPTIONS = Path("results/caption/captions.parquet")
ORDER = [("clip_id", "ascending"), ("kind", "ascending")]
FOLDER = Path("results/encode")
CLIPS_PER_TEXT_BATCH = 16
_ENCODERS = ("autoencoder", "text_encoder")
_MAY_CHANGE = ("film_id", "split", "pose_rate", "data_keys")  # of a sample whose tensors stay


@dataclass
class Job:
    """One clip or still with everything that is to be made of it."""

    clip: dict[str, Any]
    text: str | None
    wanted: dict[str, dict[str, Any]] = field(default_factory=dict)
    """sample_id -> index row, `file` and what comes of the tensors still missing."""
    views: dict[str, tuple[NDArray[np.int64], Shape, float]] = field(default_factory=dict)
    """sample_id -> frames of the file, shape, place of the crop."""
    dropped: list[dict[str, Any]] = field(default_factory=list)

    def about(self, sample_id: str) -> dict[str, Any]:
        """What a sample's tensors are made of, beside what its id says: the frames of a pose may change with holds."""
        frames = zlib.crc32(self.views[sample_id][0].astype("<i8").tobytes())
        return {"sha256": self.clip["sha256"], "text": self.text, "frames": frames}


def run(config: Config, shard: Shard = Shard()) -> None:  # noqa: B008  (frozen)
    """Write `results/encode/index.parquet/{shard}.parquet` and the safetensors files that it names."""
    jobs = plan_jobs(config, shard)
    rows = [row for job in jobs for row in job.dropped]
    rows += encode_jobs(config, jobs, shard)
    outcomes = Counter(row["outcome"] for row in rows)
    clips = {(row["clip_id"], row["kind"]) for row in rows}
    failed = {(row["clip_id"], row["kind"]): row["reason"] for row in rows if row["outcome"] == "failed"}
    if len(failed) > config.encode.max_failed_share * len(clips):
        raise ValueError(
            f"{len(failed)} of {len(clips)} clips could not be encoded, more than encode.max_failed_share allows;"
            f" the first: {next(iter(failed.values()))}"
        )
    index = FOLDER / "index.parquet"
    tables.remove_parts(index, shard.count)
    tables.write("encode_index", index / f"{shard.name}.parquet", rows)
    remove_unused_files(shard, rows)
    logger.info(
        "encode: %d samples of %d clips and stills, %d dropped, %d failed",
        *(outcomes["ok"], len(clips), outcomes["dropped"], outcomes["failed"]),
    )


def plan_jobs(config: Config, shard: Shard) -> list[Job]:
    """What the shard's clips are to become, from the manifest, the captions and the runs' data settings."""
    good = pc.field("outcome") == "ok"
    clips = tables.owned("cut_index", CLIPS, "clip_id", shard.owns, where=good).sort_by(ORDER).to_pylist()
    texts = read_texts(clips, shard)
    settings = {data_key(run.data): run.data for run in config.selected_runs.values()}
    if not settings:
        raise ValueError("no run is chosen: encode derives its shapes from the `runs:` that `project.runs` names")
    drawn = any(data.assignment == "opensora-1.1" for data in settings.values())
    places = _places(shard) if drawn else {}
    names = [(clip["clip_id"], clip["kind"]) for clip in clips]
    return [
        plan_job(config, settings, clip, texts.get(name), places.get(name, 0))
        for name, clip in zip(names, clips, strict=True)
    ]


def _places(shard: Shard) -> dict[tuple[str, str], int]:
    """Where the shard's clips and stills stand in the manifest of all: what the original's assignment draws by."""
    ids = tables.read("cut_index", CLIPS, columns=["clip_id", "kind"])
    # A column of the plain type holds 2 GiB of text, which a hundred million names exceed.
    ids = pa.table({name: ids[name].cast(pa.large_string()) for name in ids.column_names}).sort_by(ORDER)
    found: dict[tuple[str, str], int] = {}
    first = 0
    for batch in ids.to_batches(max_chunksize=tables.BATCH):
        pairs = zip(batch["clip_id"].to_pylist(), batch["kind"].to_pylist(), strict=True)
        found |= {pair: first + place for place, pair in enumerate(pairs) if shard.owns(pair[0])}
        first += len(batch)
    return found


def read_texts(clips: list[dict[str, Any]], shard: Shard) -> dict[tuple[str, str], str]:
    """(clip_id, kind) -> caption: the caption stage's, else the one that came with an adopted dataset."""
    texts = {(clip["clip_id"], clip["kind"]): clip["text"] for clip in clips if clip["text"]}
    if CAPTIONS.exists() or not texts:
        captions = tables.owned("captions", CAPTIONS, "clip_id", shard.owns, where=pc.field("outcome") == "ok")
        texts |= {(row["clip_id"], row["kind"]): row["text"] for row in captions.to_pylist() if row["text"]}
    return texts


def plan_job(config: Config, settings: Mapping[str, RunData], clip: dict[str, Any], text: str | None, row: int) -> Job:
    """Assign one clip under every run's settings; the same sample for two runs is made once."""
    job = Job(clip, text)
    for key, data in settings.items():
        if not text:
            job.dropped.append(_row(clip, [key], outcome="dropped", reason="no_caption"))
            continue
        verdict = assign(Material.of(clip, data, row), data)
        if verdict.shape is None:
            job.dropped.append(_row(clip, [key], outcome="dropped", reason=verdict.reason))
            continue
        for sample_id, view, columns in _samples(config, clip, data, verdict.shape):
            job.views[sample_id] = view
            known = job.wanted.setdefault(sample_id, _row(clip, [], **columns))
            known["data_keys"].append(key)
    return job


def _samples(
    config: Config, clip: Mapping[str, Any], data: RunData, shape: Shape
) -> Iterator[tuple[str, tuple[NDArray[np.int64], Shape, float], dict[str, Any]]]:
    still = clip["kind"] == "still"
    units = Material.of(clip, data).units
    bucket = f"{shape.resolution}-{shape.frames}f-{shape.ratio}-{showing.sampling_name(data, still)}"
    rate = showing.told_rate(data, clip["fps"], clip["pose_rate"], still)
    target = (shape.height, shape.width)
    for start in [0] if still else showing.starts(units, shape.frames, data, config.encode.offsets):
        shown = showing.window(units, shape.frames, data, start)
        frames = shown if still else showing.file_frames(shown, data.time, clip["holds"], clip["in_poses"])
        for place in showing.crop_places((clip["height"], clip["width"]), target, config.encode.crops):
            sample_id = f"{clip['clip_id']}.{bucket}.{start}.{place:.3g}"
            columns = {"sample_id": sample_id, "bucket": bucket, "frames": shape.frames, "pose_rate": rate}
            columns |= {"height": shape.height, "width": shape.width, "offset": start, "crop": place}
            yield sample_id, (frames, shape, place), columns


def _row(
    clip: Mapping[str, Any], keys: list[str], outcome: str = "ok", reason: str = "", **columns: Any
) -> dict[str, Any]:
    empty = dict.fromkeys(tables.SCHEMAS["encode_index"].names)
    known = {name: clip[name] for name in ("clip_id", "film_id", "kind", "split")}
    return empty | known | {"data_keys": keys, "outcome": outcome, "reason": reason} | columns


def encode_jobs(config: Config, jobs: list[Job], shard: Shard) -> list[dict[str, Any]]:
    """Encode what no earlier attempt has finished; index rows of all samples. Loads models only when needed.

    Raises ValueError when a GPU has too little memory.
    """
    from brickreel.training import latents

    prefix = FOLDER / shard.name
    digest = _digest(config) + "-" + _weights(config)
    finished = latents.finished(prefix, digest)
    rows, open_jobs = [], []
    for job in jobs:
        if job.wanted and all(name in finished and finished[name]["about"] == job.about(name) for name in job.wanted):
            rows += [finished[n]["row"] | {name: row[name] for name in _MAY_CHANGE} for n, row in job.wanted.items()]
        elif job.wanted:
            open_jobs.append(job)
    if not open_jobs:
        return rows

    import torch

    from brickreel.training.encoding import Encoder, choose_device

    # Shards that run beside each other on one machine take one GPU each.
    device = choose_device(config.encode.device, shard.index)
    writer = latents.Writer(prefix, digest, config.encode.file_mib)
    try:
        encoder = Encoder.load(config.base, config.encode, device)
        with Bar("encode", len(open_jobs), "clips") as bar:
            for first in range(0, len(open_jobs), CLIPS_PER_TEXT_BATCH):
                group = open_jobs[first : first + CLIPS_PER_TEXT_BATCH]
                texts = encoder.texts([job.text or "" for job in group])
                for job, text in zip(group, texts, strict=True):
                    rows += _encode(encoder, writer, job, text)
                    writer.flush(at_least_full=True)
                    bar.advance()
    except torch.OutOfMemoryError:
        raise ValueError(
            f"the memory of {device} is full: lower encode.frames_per_batch, and see with nvidia-smi what else is on it"
        ) from None
    finally:
        writer.flush()
    return rows


def _encode(encoder: Any, writer: Any, job: Job, text: Any) -> list[dict[str, Any]]:
    """One clip's samples. A clip that cannot be read is a failed row per sample, with its reason.

    Raises OSError when its file is out of reach for a reason that passes.
    """
    try:
        samples = encoder.clip(job.clip, job.views, text)
    except (ValueError, OSError) as error:
        exits.unopened(job.clip["path"])
        reason = " ".join(str(error).split())[:300]
        return [row | {"outcome": "failed", "reason": reason} for row in job.wanted.values()]
    made = {"text_tokens": len(text), "scaling_factor": float(encoder.autoencoder.scaling_factor)}
    return [writer.add(row | made, samples[sample_id], job.about(sample_id)) for sample_id, row in job.wanted.items()]


def remove_unused_files(shard: Shard, rows: list[dict[str, Any]]) -> None:
    """Delete files of earlier settings, and those of shards that are no more, once the new index is in place."""
    from brickreel.training import latents

    latents.remove_unused(FOLDER / shard.name, rows, shard.count)


def _digest(config: Config) -> str:
    """Settings that decide tensors: files made with others are not reused."""
    value = {
        "autoencoder": config.base.autoencoder.model_dump(mode="json"),
        "text_encoder": config.base.text_encoder.model_dump(mode="json"),
        "encode": config.encode.model_dump(mode="json", include={"dtype", "text_tokens"}),
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _weights(config: Config) -> str:
    """Names the weights behind the paths; empty where they are not on this machine, which finished work can do without.

    Latents of other weights at the same path are not reused.
    """
    from brickreel.models import load

    try:
        parts = {part: load.fingerprint(part, **getattr(config.base, part).model_dump()) for part in _ENCODERS}
    except FileNotFoundError:
        return ""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
