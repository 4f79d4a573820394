"""A project folder as training leaves it, made in a second: toy base model, checkpoints, final weights, clips."""

import json
from pathlib import Path

import numpy as np
import torch

import tiny
from brickreel import config, files, tables
from brickreel.films import video
from brickreel.training.checkpoint import Checkpoints

STEPS = (2, 4)
PROMPTS = ("a red brick drives", "the blue house: \"über\" / the sea? <b>\\n</b> 'é' 猫 " + "x" * 300)


def make(folder: Path, **sample) -> config.Config:
    """Write base model, checkpoints of `STEPS`, final weights and the configuration; nothing is sampled yet."""
    tiny.save_base(folder / "base")
    settings = {
        "base": tiny.base_settings(Path("base")),
        "runs": {"r": {"data": {"buckets": {"64p": {4: [1.0, 2]}}}, "max_steps": STEPS[-1]}},
        "sample": {
            "prompts": PROMPTS,
            "resolution": [64, 64],  # x264 of smaller pictures is not the same every time
            "frames": 4,
            "steps": 2,
            "seeds": [0, 1],
            **sample,
        },
    }
    (folder / "config.json").write_text(json.dumps(settings))
    train = folder / "results" / "train" / "r"
    writer = Checkpoints(train / "checkpoints", 0, 1, torch.device("cpu"))
    for step in STEPS:
        torch.manual_seed(step)
        state = tiny.transformer().state_dict()
        weights = {f"{kind}.{name}": tensor.clone() for kind in ("model", "ema") for name, tensor in state.items()}
        writer.save(step, weights, {"step": step}, wait=True)
    writer.close()
    for kind in ("raw", "ema"):
        tiny.transformer().save_pretrained(train / "final" / kind)
    return config.load(folder / "config.json")


def write_clips(folder: Path, scene, train: int = 4, heldout: int = 3, poses: int = 12, holds: int = 2) -> list[dict]:
    """Drawn clips as `cut` writes them, each pose held for `holds` frames."""
    rows = []
    for number in range(train + heldout):
        path = Path("results/cut/clips") / f"{number:016x}.mp4"
        video.write(folder / path, scene(number, poses, 48), 24.0, [holds] * poses)
        rows.append(
            dict.fromkeys(tables.SCHEMAS["cut_index"].names)
            | {
                "clip_id": f"{number:016x}",
                "film_id": f"film{number % 3}",
                "kind": "clip",
                "path": path.as_posix(),
                "frames": poses * holds,
                "holds": [holds] * poses,
                "in_poses": False,
                "fps": 24.0,
                "pose_rate": 24.0 / holds,
                "cadence": "twos",
                "width": 48,
                "height": 48,
                "split": "train" if number < train else "heldout",
                "sha256": "",
                "outcome": "ok",
                "reason": "",
            }
        )
    tables.write("cut_index", folder / "results/cut/index.parquet/00.parquet", rows)
    return rows


def write_samples(folder: Path, videos: dict[tuple[int, str, int], np.ndarray], hold: int = 1, **changes) -> list[dict]:
    """Videos as `sample` writes them: (step, prompt, seed) -> poses [T, H, W, 3]."""
    rows = []
    for (step, prompt, seed), frames in videos.items():
        name = f"{prompt.replace(' ', '-')}-{seed}-{len(rows)}.mp4"
        path = Path(f"results/sample/r/step-{step:08d}/{name}")
        video.write(folder / path, frames, 8.0 * hold, [hold] * len(frames))
        rows.append(
            dict.fromkeys(tables.SCHEMAS["samples"].names)
            | {
                "prompt_id": prompt.replace(" ", "-"),
                "prompt": prompt,
                "seed": seed,
                "step": step,
                "weights": "ema" if step else "base",
                "conditional": True,
                "length": 1,
                "path": path.as_posix(),
                "frames": len(frames),
                "height": frames.shape[1],
                "width": frames.shape[2],
                "pose_rate": 8.0,
                "holds": [hold] * len(frames),
                "outcome": "ok",
                "reason": "",
                **changes,
            }
        )
    for step in {row["step"] for row in rows}:
        of_step = [row for row in rows if row["step"] == step]
        tables.write("samples", folder / f"results/sample/r/step-{step:08d}/samples.parquet", of_step)
    return rows


def write_gauge(folder: Path, losses: dict[int, float], bins: int = 2) -> None:
    """The held-out loss of EMA weights by step; every bin a little different."""
    for step, loss in losses.items():
        for number in range(bins):
            values = {"attempt": 1, "time_s": 0.0, "weights": "ema", "bin": number, "clips": 2}
            place = {"t_low": 1000 * number // bins, "t_high": 1000 * (number + 1) // bins}
            found = {"step": step, "loss": loss + number, "low": loss, "high": loss, "relative": loss / losses[0]}
            tables.log("gauge", folder / "results/train/r/gauge.jsonl", {**values, **place, **found})


def scores(folder: Path) -> dict:
    """What `evaluate` wrote."""
    return files.read_json(folder / "results/evaluate/r/scores.json")
