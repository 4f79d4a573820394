"""A project's folder with something of everything, and with hostile words wherever a person or a file may put them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from brickreel import files, tables
from brickreel.films import video
from telemetry import fleet
from telemetry.logs import attempt, write_steps

EVIL = "<script>window.evil=1</script>\"'><img src=x onerror=window.evil=1>"


def row(name: str, **columns) -> dict:
    """A row of a table with everything null but these."""
    return dict.fromkeys(tables.SCHEMAS[name].names) | {"outcome": "ok", "reason": ""} | columns


def write(folder: Path, run: str = "big", evil: str = EVIL) -> Path:
    """Everything under `folder`; returns its configuration."""
    fleet.write_run(folder, run, nodes=2, gpus=2, hours=0.1, step_s=1.0, slow_rank=3, slower=1.2)
    results = folder / "results"
    _data(results, evil)
    _run(folder, run, evil)
    return fleet.configuration(folder, run)


def _data(results: Path, evil: str) -> None:
    films = [
        row("sources", film_id="f1", title=evil, channel=evil, licence="CC0-1.0", rights_holder=evil, url="javascript:",
            width=640, height=360, fps=24.0, frames=2400, duration_s=100.0, variable_rate=False),
        row("sources", path=evil, outcome="failed", reason=evil),
    ]  # fmt: skip
    tables.write("sources", results / "ingest/sources.parquet", films)
    clips = [
        row("clips", clip_id=f"c{n}", film_id="f1", start_frame=0, end_frame=48, fps=24.0, pose_frames=list(range(24)))
        for n in range(3)
    ]
    clips.append(row("clips", clip_id="c9", film_id="f1", start_frame=0, end_frame=9, outcome="dropped", reason=evil))
    tables.write("clips", results / "curate/clips.parquet", clips)
    cut = [
        row("cut_index", clip_id=f"c{n}", film_id="f1", kind="clip", split="train", cadence="twos", licence="CC0-1.0")
        for n in range(3)
    ]
    tables.write("cut_index", results / "cut/index.parquet/00.parquet", cut)
    captions = [
        row("captions", clip_id=f"c{n}", kind="clip", text=evil, model="gpt", usd=0.5, tokens_in=10, tokens_out=5)
        for n in range(3)
    ]
    tables.write("captions", results / "caption/captions.parquet/00.parquet", captions)
    encoded = [row("encode_index", sample_id=f"c{n}", bucket="64p-4f", split="train") for n in range(3)]
    tables.write("encode_index", results / "encode/index.parquet/00.parquet", encoded)
    files.write_json(results / "caption/forecast.json", {"usd": 1.25})


def _run(folder: Path, run: str, evil: str) -> None:
    results = folder / "results"
    plan = {"run": run, "steps": 300, "gpu_hours": {"value": 0.5, "low": 0.3, "high": 0.9}, "buckets": {"x": 1}}
    plan |= {"clips": {"used": 3, "dropped": {evil: 1}}, "per_bucket": [_bucket(evil)], "usd": {"value": None}}
    files.write_json(results / "plan" / run / "plan.json", plan)
    checks = [{"name": evil, "node": evil, "result": "fail", "value": 1.5, "unit": "GB/s", "reason": evil}]
    health = {"verdict": "fail", "exclude": ["node001"], "simulated": False, "checks": checks}
    files.write_json(results / "preflight" / run / "health.json", health)
    for step in (0, 100, 200):
        for low in (0, 500):
            gauge = {"attempt": 0, "step": step, "time_s": 1.0, "weights": "ema", "bin": low // 500, "t_low": low}
            gauge |= {"t_high": low + 500, "loss": 1 - step / 1000, "low": 0.5, "high": 1.5, "clips": 7}
            files.append_json_line(results / "train" / run / "gauge.jsonl", gauge | {"relative": 1 - step / 1000})
    files.write_json(results / "train" / run / "settings.json", {"note": evil, "grad_checkpoint": True})
    _samples(folder, run, evil)
    score = {"name": "drift", "weights": "ema", "conditional": True, "length": 1, "unit": "cosine", "better": "lower"}
    score |= {"videos": 1, "n": 3, "reason": evil}
    metrics = [score | {"step": step, "value": 0.5 - step / 1000, "low": 0.1, "high": 0.9} for step in (100, 200)]
    metrics.insert(0, score | {"step": 0, "weights": "base", "value": 0.7, "low": None, "high": None})
    ceiling = [score | {"step": None, "weights": "held-out", "value": 0.2, "low": 0.1, "high": 0.3}]
    correlation = [{"metric": "drift", "weights": "ema", "bin": 0, "t_low": 0, "t_high": 500, "value": 0.8, "n": 5}]
    scores = {"run": run, "metrics": metrics, "ceiling": ceiling, "gauge_correlation": correlation}
    files.write_json(results / "evaluate" / run / "scores.json", scores)
    Image.new("RGB", (8, 8)).save(results / "evaluate" / run / "nearest.jpg")


def _bucket(evil: str) -> dict:
    return {"name": evil, "clips": 3, "micro_batch": 2, "tokens_per_sample": 256}


def _samples(folder: Path, run: str, evil: str) -> None:
    for step in (0, 100):
        place = folder / "results/sample" / run / f"step-{step:08d}"
        place.mkdir(parents=True)
        write_video(place / "one-0.mp4")
        path = str((place / "one-0.mp4").relative_to(folder))
        sample = row("samples", prompt_id="one", prompt=evil, seed=0, step=step, weights="ema" if step else "base")
        sample |= {"conditional": True, "path": path, "frames": 4, "height": 64, "width": 64, "seconds": 2.0}
        lost = sample | {"prompt_id": "two", "path": None, "outcome": "failed", "reason": evil}
        tables.write("samples", place / "samples.parquet", [sample, lost])


def write_video(path: Path) -> None:
    """Four frames of 64 x 64."""
    frames = np.stack([np.full((64, 64, 3), shade, np.uint8) for shade in (0, 80, 160, 240)])
    video.write(path, frames, 8)


def restarted(folder: Path, run: str) -> None:
    """A second run on one process without a GPU: cut off once and restarted from an older checkpoint."""
    train = folder / "results/train" / run
    write_steps(train / "steps", 0, 0, list(range(1, 41)), start_s=1000.0)
    write_steps(train / "steps", 1, 0, list(range(21, 61)), start_s=1100.0)
    rows = attempt(0, 990.0, None) + attempt(1, 1095.0, 1145.0)
    (train / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
