"""How long `evaluate` takes for 100 videos of 16 x 64 x 64, and whether its distances rank damage as they should."""

import os
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from _limits import at_most, judge
from brickreel import config, tables
from brickreel.evaluation import distance, features, metrics
from brickreel.films import video
from brickreel.stages import evaluate

OUT = Path("results/bench/metrics.json").resolve()
VIDEOS, POSES, SIDE = 100, 16, 64


def scene(seed: int, poses: int = POSES) -> np.ndarray:
    """Discs of random colours gliding over a floor: [poses, SIDE, SIDE, 3]."""
    rng = np.random.default_rng(seed)
    discs = [(rng.uniform(0.1, 0.9, 2), rng.uniform(-0.4, 0.4, 2), rng.uniform(0.06, 0.2), rng.integers(20, 255, 3))
             for _ in range(4)]  # fmt: skip
    ground = rng.integers(60, 220, 3)
    frames = []
    for pose in range(poses):
        frame = np.full((SIDE, SIDE, 3), ground, np.uint8)
        for place, speed, radius, colour in discs:
            x, y = (place + speed * pose / poses) * SIDE * 16
            cv2.circle(frame, (int(x), int(y)), int(radius * SIDE * 16), colour.tolist(), -1, cv2.LINE_AA, 4)
        frames.append(frame)
    return np.stack(frames)


def write_project() -> None:
    """Held-out clips, their index and samples, as the stages before would leave them."""
    rows = []
    for number in range(40):
        path = f"results/cut/clips/{number:016x}.mp4"
        video.write(path, scene(number, 32), 12.0)
        about = {"clip_id": f"{number:016x}", "film_id": "f", "kind": "clip", "path": path, "frames": 32,
                 "in_poses": True, "holds": [2] * 32, "fps": 24.0, "pose_rate": 12.0, "width": SIDE, "height": SIDE,
                 "split": "train" if number < 20 else "heldout", "outcome": "ok", "reason": ""}  # fmt: skip
        rows.append(dict.fromkeys(tables.SCHEMAS["cut_index"].names) | about)
    tables.write("cut_index", "results/cut/index.parquet/00.parquet", rows)
    samples = []
    for number in range(VIDEOS):
        path = f"results/sample/r/step-00000010/{number}.mp4"
        video.write(path, scene(1000 + number), 8.0)
        about = {"prompt_id": str(number // 4), "prompt": str(number // 4), "seed": number % 4, "step": 10,
                 "weights": "ema", "conditional": True, "length": 1, "path": path, "frames": POSES, "height": SIDE,
                 "width": SIDE, "pose_rate": 8.0, "holds": [1] * POSES, "outcome": "ok", "reason": ""}  # fmt: skip
        samples.append(dict.fromkeys(tables.SCHEMAS["samples"].names) | about)
    tables.write("samples", "results/sample/r/step-00000010/samples.parquet", samples)


def damaged() -> dict[str, dict[str, float]]:
    """Metric values of clean scenes and of damaged ones."""
    rng = np.random.default_rng(0)
    kinds = {
        "clean": lambda v: v,
        "noise": lambda v: np.clip(v + rng.normal(0, 12, v.shape), 0, 255).astype(np.uint8),
        "blur": lambda v: np.stack([cv2.GaussianBlur(frame, (0, 0), 2.5) for frame in v]),
        "flicker": lambda v: np.clip(v * (1 + 0.1 * rng.choice([-1, 1], len(v)))[:, None, None, None], 0, 255).astype(
            np.uint8
        ),
        "shuffle": lambda v: v[rng.permutation(len(v))],
    }
    reference = features.transnetv2([scene(seed) for seed in range(10)])
    found = {}
    for name, damage in kinds.items():
        videos = [damage(scene(seed)) for seed in range(100, 110)]
        vectors = features.transnetv2(videos)
        found[name] = {
            "frechet_distance": distance.frechet(np.concatenate(vectors), np.concatenate(reference)),
            "kernel_distance": distance.kernel(vectors, reference),
            "smoothness": float(np.mean([metrics.smoothness(v) for v in videos])),
            "noise": float(np.mean([metrics.noise(v) for v in videos])),
            "flicker_between": float(np.mean([metrics.flicker_between(v) for v in videos])),
        }
    return found


def main() -> None:
    """Score a set of videos and print how long it took, and what each damage does to each metric."""
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_project()
        sample = {"prompts": ["x"], "resolution": [SIDE, SIDE], "frames": POSES}
        settings = config.load({"runs": {"r": {}}, "sample": sample})
        wall, cpu = time.perf_counter(), time.process_time()
        evaluate.run(settings, "r")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        os.chdir(home)
    table = damaged()
    cost = {"videos": VIDEOS, "wall_s": wall, "cpu_s": cpu}
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    print(f"evaluate, {VIDEOS} videos of {POSES} x {SIDE} x {SIDE}: {wall:.1f} s, {cpu:.1f} s of CPU")
    for name, row in table.items():
        print(f"{name:8}", "  ".join(f"{metric} {value:.3g}" for metric, value in row.items()))
    judge(OUT, cost | machine | {"damage": table}, [at_most("wall_s", wall, 60)])


if __name__ == "__main__":
    main()
