"""`curate` on a million clips from 20,000 films, 2 % of them copies with flipped hash bits.

Limits: 60 s and 4 GiB; of the planted copies at least 95 % found, of the found at least 99 % planted.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from _limits import at_least, at_most, judge
from brickreel import files, tables
from brickreel.stages import analyze, curate, ingest

CLIPS_PER_FILM, POSES, COPIES, FLIPS, PARTS = 50, 15, 0.02, 4, 20


def main() -> None:
    """Measure and write results/bench/curate.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--films", type=int, default=20_000)
    films = parser.parse_args().films
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    target = Path("results/bench/curate.json").resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        copies = write(films, np.random.default_rng(seed))
        files.write_text("c.yaml", "{}\n")
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "brickreel", "curate", "--config", "c.yaml"], check=True)
        seconds = time.perf_counter() - began
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        result: dict[str, Any] = {
            "seed": seed,
            "films": films,
            "clips": films * CLIPS_PER_FILM,
            "seconds": seconds,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "memory_gib": usage.ru_maxrss / 2**20,
        } | quality(copies)
    print(result)
    limits = [at_most("cpu_s", result["cpu_s"], 60), at_most("memory_gib", result["memory_gib"], 4)]
    limits += [at_least("recall", result["recall"], 0.95), at_least("precision", result["precision"], 0.99)]
    judge(target, result, limits)


def write(films: int, rng: np.random.Generator) -> dict[str, str]:
    """Sources and signals; returns copy -> original, both as clip ids."""
    ids = [f"{film:016x}" for film in range(films)]
    plain = dict.fromkeys(tables.SCHEMAS["sources"].names)
    plain |= {"path": "film.mp4", "licence": "CC0", "width": 640, "height": 360, "fps": 24.0, "variable_rate": False}
    frames = CLIPS_PER_FILM * POSES
    plain |= {"frames": frames, "outcome": "ok", "reason": ""}
    tables.write("sources", ingest.OUTPUT, [plain | {"film_id": film_id} for film_id in ids])
    clips = films * CLIPS_PER_FILM
    # The second half of the films holds the copies, each of a clip of the first half.
    count = int(COPIES * clips)
    originals = rng.choice(clips // 2, count, replace=False)
    places = clips // 2 + rng.choice(clips // 2, count, replace=False)
    hashes = rng.integers(0, 2**64, (clips, POSES), dtype=np.uint64)
    hashes[places] = hashes[originals]
    for _ in range(FLIPS):
        hashes[places] ^= np.uint64(1) << rng.integers(0, 64, (count, POSES), dtype=np.uint64)
    size = -(-films // PARTS)
    for part in range(PARTS):
        chosen = range(part * size, min(films, (part + 1) * size))
        _write_part(
            part, [ids[film] for film in chosen], hashes[chosen.start * CLIPS_PER_FILM : chosen.stop * CLIPS_PER_FILM]
        )
    names = [_clip_id(ids, clip) for clip in range(clips)] if count else []
    return {names[copy]: names[original] for copy, original in zip(places.tolist(), originals.tolist(), strict=True)}


def _clip_id(ids: list[str], clip: int) -> str:
    start = clip % CLIPS_PER_FILM * POSES
    return f"{ids[clip // CLIPS_PER_FILM]}-{start:06d}-{start + POSES:06d}"


def _write_part(part: int, ids: list[str], hashes: np.ndarray) -> None:
    """Signals of some films: every frame a pose, a cut before every clip."""
    frames = CLIPS_PER_FILM * POSES
    schema = tables.SCHEMAS["signals"]
    frame = np.arange(frames)
    level = {
        "luma": 0.5,
        "contrast": 0.2,
        "blur": 0.3,
        "flicker": 0.0,
        "motion": 0.05,
        "hold_score": 40.0,
        "text_score": 0.0,
    }
    one: dict[str, Any] = {name: pa.array(np.full(frames, value, np.float32)) for name, value in level.items()}
    one |= {
        "frame": pa.array(frame),
        "time_s": pa.array(frame / 24),
        "cut_score": pa.array(np.zeros(frames, np.float32)),
        "transition": pa.array(np.where((frame % POSES == 0) & (frame > 0), "cut", "")),
        "new_pose": pa.array(np.ones(frames, bool)),
        "crop": pa.FixedSizeListArray.from_arrays(pa.array(np.tile([0, 0, 640, 360], frames).astype(np.int32)), 4),
        "thumbnail": pa.nulls(frames, pa.binary()),
        "outcome": pa.array(np.full(frames, "ok")),
        "reason": pa.array(np.full(frames, "")),
    }
    path = analyze.OUTPUT / f"{part:02d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema) as writer:
        for place, film_id in enumerate(ids):
            own = hashes[place * CLIPS_PER_FILM : (place + 1) * CLIPS_PER_FILM].ravel()
            columns = one | {"film_id": pa.array([film_id] * frames), "phash": pa.array(own)}
            writer.write_table(
                pa.table({name: columns[name].cast(schema.field(name).type) for name in schema.names}, schema=schema)
            )


def quality(copies: dict[str, str]) -> dict[str, float]:
    """Recall and precision of the near-duplicates."""
    rows = tables.read("clips", curate.OUTPUT, columns=["clip_id", "duplicate_of"]).to_pylist()
    found = {row["clip_id"]: row["duplicate_of"] for row in rows if row["duplicate_of"]}
    # Either of the two may be kept.
    right = sum(copies.get(clip) == other or copies.get(other) == clip for clip, other in found.items())
    return {"recall": right / max(1, len(copies)), "precision": right / max(1, len(found)), "planted": len(copies)}


if __name__ == "__main__":
    main()
