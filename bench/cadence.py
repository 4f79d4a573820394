"""Pose time put to the test: the same run counting poses, and showing every k-th frame as the origin did.

All train the demo's model on the same clips for the same steps, three seeds each, and are asked for the same: the
captions of the held-out clips at 12 poses per second (twos at 24 frames per second), each frame of the video a new
pose. k = 2 is the origin's own interval for 64 frames, and the one that suits these films best: every other frame of
them is 12 per second, and many are shot on twos. k = 1 shows what happens where the interval does not fit the holds:
about half of all frames repeat the one before.

Told of all, with intervals over seeds: distance of the hold lengths to those asked for, and Frechet and kernel
distance to held-out clips in pose time (holds that a run on frames makes are found and collapsed first). Differences
are paired by seed. Beside them what each was shown: the share of frames that repeat the one before, and of poses that
are never seen, and how uneven the changes from frame to frame are, in the clips and in the samples: a run that has not
learned the stutter of its clips cannot be worse for it. Ingest to cut happens once, and encode once for all.

About twenty minutes on one core. Writes results/bench/cadence.json.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import _project
from brickreel import files, tables
from brickreel.config import Config, RunData
from brickreel.evaluation import statistics
from brickreel.films import video
from brickreel.training import showing
from gauge import heldout_captions

OUT = Path("results/bench/cadence.json").resolve()
POSES = "poses"
# Which way a difference (frames - poses) points when pose time is better.
METRICS = {"hold_distance": 1, "frechet_distance": 1, "kernel_distance": 1, "smoothness": -1, "motion": 0, "copies": 0}
RATE = 12.0


def ways(strides: Sequence[int]) -> dict[str, dict[str, Any]]:
    """What time is counted in: the only thing in which runs differ."""
    return {POSES: {"time": "poses"}} | {f"frames-{stride}": {"time": "frames", "stride": stride} for stride in strides}


def settings(steps: int, strides: Sequence[int], seeds: Sequence[int], prompts: Sequence[str]) -> Config:
    """A run per way and seed."""
    base = _project.demo_settings().run("demo").model_dump(mode="json")
    base["schedule"] |= {"cooldown_steps": max(1, steps - base["schedule"]["warmup_steps"])}
    ends = {"max_steps": steps, "checkpoint_every": steps, "gauge_every": steps}
    runs = {
        f"{arm}-{seed}": base | ends | {"seed": seed, "data": base["data"] | way}
        for arm, way in ways(strides).items()
        for seed in seeds
    }
    sample = {
        "prompts": list(prompts) or ["none yet"],
        "unconditional": False,
        "lengths": [1],
        "pose_rate": RATE,
        "sampler": "dpm-solver++",
        "steps": 20,
        "checkpoints": "final",
    }
    return _project.demo_settings(runs=runs, sample=sample)


def shown_frames(data: RunData) -> dict[str, Any]:
    """What a run is shown of the training clips: repeated frames, poses never seen, and uneven steps between poses."""
    rows = tables.read("cut_index", "results/cut/index.parquet").to_pylist()
    frames = next(length for length in next(iter(data.buckets.values())) if length > 1)
    repeats = steps = poses = seen = uneven = clips = 0
    changes = []
    for row in rows:
        if row["kind"] != "clip" or row["split"] != "train" or row["outcome"] != "ok" or not row["holds"]:
            continue
        pose_of_frame = np.repeat(np.arange(len(row["holds"])), row["holds"])
        units = len(row["holds"]) if data.time == "poses" else len(pose_of_frame)
        if units < 1 + (frames - 1) * data.stride:
            continue
        window = showing.window(units, frames, data, showing.starts(units, frames, data, 1)[0])
        shown = window if data.time == "poses" else pose_of_frame[window]
        moved = np.diff(shown)
        first_frames = np.cumsum([0, *row["holds"]])[:-1]
        indices = first_frames[window] if data.time == "poses" else window
        changes.append(unevenness(video.read(row["path"], [int(index) for index in indices])))
        clips += 1
        repeats, steps = repeats + int((moved == 0).sum()), steps + len(moved)
        poses, seen = poses + int(shown[-1] - shown[0] + 1), seen + len(set(shown.tolist()))
        uneven += len(set(moved.tolist())) > 1
    return {
        "clips": clips,
        "repeated_frames": repeats / max(steps, 1),
        "poses_never_seen": 1 - seen / max(poses, 1),
        "clips_with_uneven_steps": uneven / max(clips, 1),
        "unevenness": float(np.mean(changes)),
    }


def scores_of(run: str) -> dict[str, dict[str, Any]]:
    """The metrics of a run's last weights, and of the base model under `base`."""
    scores = files.read_json(Path("results/evaluate") / run / "scores.json")
    found: dict[str, dict[str, Any]] = {"base": {}, "ema": {}, "held-out": {}}
    for row in [*scores["metrics"], *scores["ceiling"]]:
        found[row["weights"]][row["name"]] = row["value"]
    return found


def unevenness(frames: np.ndarray) -> float:
    """Standard deviation over mean of the changes from frame to frame: 0 in even motion, 1 and more in a stutter."""
    change = np.array([np.abs(b - a).mean() for a, b in pairwise(frames.astype(np.float32))])
    return float(change.std() / max(change.mean(), 1e-6))


def of_samples(run: str) -> float:
    """Unevenness of a run's samples: whether it has learned to hold, without the thresholds of the hold metric."""
    paths = sorted((Path("results/sample") / run).glob("step-*[1-9]*/*.mp4"))
    return float(np.mean([unevenness(video.read(path)) for path in paths]))


def summary(values: Mapping[str, Mapping[int, float]], sign: int) -> dict[str, Any]:
    """Each way's mean over seeds, and of all but poses the mean difference to it, paired, with Student's intervals."""
    found: dict[str, Any] = {}
    for arm, by_seed in values.items():
        found[arm] = {**statistics.mean_of_groups([[value] for value in by_seed.values()])._asdict(), "seeds": by_seed}
        if arm != POSES:
            apart = statistics.mean_of_groups([[by_seed[seed] - values[POSES][seed]] for seed in by_seed])
            found[arm] |= {"minus_poses": apart._asdict(), "verdict": verdict(apart, sign)}
    return found


def verdict(apart: statistics.Estimate, sign: int) -> str:
    """Whether the interval of the difference leaves 0 out, and on which side."""
    if apart.low is None or apart.high is None or not sign:
        return "not judged"
    if apart.low <= 0 <= apart.high:
        return "no difference can be told"
    return "pose time wins" if (apart.low > 0) == (sign > 0) else "pose time loses"


def experiment(steps: int, strides: Sequence[int], seeds: Sequence[int], source: Path) -> dict[str, Any]:
    """Run the stages under the present folder and gather what they found."""
    began = time.perf_counter()
    origin = _project.demo_clips(settings(steps, strides, seeds, ()), source)
    chosen = settings(steps, strides, seeds, heldout_captions())
    _project.stage("encode", chosen)
    shared_s = time.perf_counter() - began
    scores, seconds, rhythm = {}, {}, {}
    arms = ways(strides)
    for seed in seeds:
        for arm in arms:
            run, start = f"{arm}-{seed}", time.perf_counter()
            for name in ("plan", "train", "sample", "evaluate"):
                _project.stage(name, chosen, run=run)
            seconds[run] = round(time.perf_counter() - start, 1)
            scores[run] = scores_of(run)
            rhythm[run] = of_samples(run)
            print(f"{run}: {seconds[run]} s", flush=True)

    def over_seeds(name: str) -> dict[str, dict[int, float]]:
        return {arm: {seed: scores[f"{arm}-{seed}"]["ema"][name] for seed in seeds} for arm in arms}

    metrics = {name: summary(over_seeds(name), sign) for name, sign in METRICS.items()}
    metrics["unevenness"] = summary({arm: {seed: rhythm[f"{arm}-{seed}"] for seed in seeds} for arm in arms}, 1)
    some = scores[f"{POSES}-{seeds[0]}"]
    return {
        "clips": origin,
        "steps": steps,
        "seeds": list(seeds),
        "prompts": len(chosen.sample.prompts),  # type: ignore[arg-type]
        "shown": {arm: shown_frames(chosen.run(f"{arm}-{seeds[0]}").data) for arm in arms},
        "metrics": metrics,
        "base": {name: some["base"][name] for name in METRICS},
        "held_out": {name: some["held-out"][name] for name in METRICS},
        "seconds": {"clips and encode": round(shared_s, 1), **seconds},
    }


def show(found: Mapping[str, Any]) -> None:
    """Print all ways and what the differences let one say."""
    print(f"{found['clips']}; {found['steps']} steps, {len(found['seeds'])} seeds, {found['prompts']} prompts")
    for arm, row in found["shown"].items():
        print(
            f"shown to {arm}: {row['clips']} clips, {row['repeated_frames']:.1%} of frames repeat the one"
            f" before, {row['poses_never_seen']:.1%} of poses are skipped, steps uneven in"
            f" {row['clips_with_uneven_steps']:.0%} of the clips; unevenness {row['unevenness']:.2f}"
        )
    for name, row in found["metrics"].items():
        ends = (found[part].get(name, float("nan")) for part in ("base", "held_out"))
        print(f"\n{name}: base {{:.3g}}, held-out {{:.3g}}".format(*ends))
        for arm, cell in row.items():
            apart = f"difference {_project.told(cell['minus_poses'])}: {cell['verdict']}" if arm != POSES else ""
            print(f"  {arm:10}{_project.told(cell):>28}  {apart}")


def main() -> None:
    """Run the experiment, in a folder that is kept when one is named, and write the results."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--steps", type=int, default=300, help="optimizer steps of every run")
    options.add_argument(
        "--strides", type=int, nargs="+", default=[2, 1], help="every how-manieth frame the runs on frames are shown"
    )
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    found = _project.in_folder(
        options, lambda chosen, source: experiment(chosen.steps, chosen.strides, chosen.seeds, source)
    )
    files.write_json(OUT, found)
    show(found)


if __name__ == "__main__":
    main()
