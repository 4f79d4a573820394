"""Does the held-out loss tell how good the samples are? The demo's model over a dozen checkpoints.

Trains the demo's run with a checkpoint and a reading of the gauge every 50 steps, samples the captions of the held-out
clips from each, scores them, and prints the rank correlation of the held-out loss, per timestep bin, with every metric:
Spearman's rho with its 95 % interval, whatever it is; positive where the metric falls with the loss. Metrics that are
best near the held-out clips' value are taken by their distance from it; smoothness alone is better when it is higher.

The interval takes checkpoints for independent, which those of one run are not: it is too narrow rather than too wide.
Hence the second table, of what changes from one checkpoint to the next, in which a common trend is gone.

About ten minutes on one core. Writes results/bench/gauge.json.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import _project
from brickreel import files, tables
from brickreel.config import Config
from brickreel.evaluation import statistics

RUN = "gauge"
OUT = Path("results/bench/gauge.json").resolve()
LEAST_CHECKPOINTS = 10
# What the printed table holds; the file holds every metric.
SHOWN = ("frechet_distance", "kernel_distance", "smoothness", "hold_distance", "motion", "noise", "sharpness", "drift",
         "flicker_between", "nearest_training_clip")  # fmt: skip


def settings(steps: int, every: int, prompts: Sequence[str]) -> Config:
    """The demo's run, with every checkpoint kept and read, and samples of the held-out clips' captions."""
    run = _project.demo_settings().run("demo").model_dump(mode="json")
    run |= {
        "max_steps": steps,
        "checkpoint_every": every,
        "keep_every": every,
        "gauge_every": every,
        # All held-out clips at every reading: it is the gauge that is on trial here, not its price.
        "gauge_share": 0.2,
    }
    run["schedule"] |= {"cooldown_steps": max(0, steps - run["schedule"]["warmup_steps"])}
    # The fast sampler: what is compared are checkpoints, and there are many of them.
    sample = {
        "prompts": list(prompts) or ["none yet"],
        "unconditional": False,
        "lengths": [1],
        "sampler": "dpm-solver++",
        "steps": 20,
    }
    return _project.demo_settings(runs={RUN: run}, sample=sample)


def heldout_captions() -> list[str]:
    """What the held-out clips show, in words: each text once."""
    index = tables.read("cut_index", "results/cut/index.parquet", ["clip_id", "kind", "split", "outcome"]).to_pylist()
    heldout = {row["clip_id"] for row in index if row["split"] == "heldout" and row["outcome"] == "ok"}
    captions = tables.read("captions", "results/caption/captions.parquet", ["clip_id", "kind", "text"]).to_pylist()
    texts = [row["text"] for row in captions if row["clip_id"] in heldout and row["kind"] == "clip" and row["text"]]
    return sorted(set(texts))


def step_changes(scores: Mapping[str, Any], gauge: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rank correlation of the changes of loss (mean over bins) and metric from one checkpoint to the next."""
    best = {row["name"]: row["value"] for row in scores["ceiling"]}
    by_step: dict[int, list[float]] = {}
    for row in gauge:
        if row["weights"] == "ema" and row["relative"] is not None:
            by_step.setdefault(row["step"], []).append(row["relative"])
    loss = {step: sum(values) / len(values) for step, values in by_step.items()}
    found = []
    for name in dict.fromkeys(row["name"] for row in scores["metrics"]):
        rows = [row for row in scores["metrics"] if row["name"] == name and row["value"] is not None]
        if not rows:
            continue
        near = rows[0]["better"] == "near held-out"
        if near and best.get(name) is None:
            continue
        value = {row["step"]: abs(row["value"] - best[name]) if near else row["value"] for row in rows}
        # The base model is left out: from it to the first checkpoint everything changes at once.
        steps = [step for step in sorted(set(value) & set(loss)) if step]
        estimate = statistics.spearman(
            [loss[b] - loss[a] for a, b in pairwise(steps)], [value[b] - value[a] for a, b in pairwise(steps)]
        )
        found.append({"metric": name, **estimate._asdict()})
    return found


def experiment(steps: int, every: int, source: Path) -> dict[str, Any]:
    """Run the stages under the present folder and gather what they found."""
    seconds: dict[str, float] = {}

    def timed(name: str, chosen: Config, **scope: Any) -> None:
        began = time.perf_counter()
        _project.stage(name, chosen, **scope)
        seconds[name] = round(time.perf_counter() - began, 1)

    began = time.perf_counter()
    origin = _project.demo_clips(settings(steps, every, ()), source)
    seconds["clips"] = round(time.perf_counter() - began, 1)
    chosen = settings(steps, every, heldout_captions())
    timed("encode", chosen)
    for name in ("plan", "train", "sample", "evaluate"):
        timed(name, chosen, run=RUN)
    scores = files.read_json(Path("results/evaluate") / RUN / "scores.json")
    gauge = tables.read_log("gauge", Path("results/train") / RUN / "gauge.jsonl").to_pylist()
    checkpoints = sorted({row["step"] for row in scores["metrics"] if row["step"]})
    if len(checkpoints) < LEAST_CHECKPOINTS:
        raise ValueError(f"{len(checkpoints)} checkpoints, at least {LEAST_CHECKPOINTS} are needed: lower --every")
    return {
        "clips": origin,
        "steps": steps,
        "checkpoints": checkpoints,
        "prompts": len(chosen.sample.prompts),  # type: ignore[arg-type]
        "features": scores["features"],
        "seconds": seconds,
        "correlation": scores["gauge_correlation"],
        "correlation_of_changes": step_changes(scores, gauge),
        "gauge": [
            {name: row[name] for name in ("step", "bin", "t_low", "t_high", "relative", "clips")}
            for row in gauge
            if row["weights"] == "ema"
        ],
        "metrics": [
            {name: row[name] for name in ("step", "name", "value", "low", "high", "videos")}
            for row in scores["metrics"]
            if row["value"] is not None
        ],
        "ceiling": {row["name"]: row["value"] for row in scores["ceiling"]},
    }


def show(found: Mapping[str, Any]) -> None:
    """Print series and correlations."""
    steps = [0, *found["checkpoints"]]
    print(f"{found['clips']}; {len(found['checkpoints'])} checkpoints and the base model, {found['prompts']} prompts")
    print(f"\n{'step':24}" + "".join(f"{step:>8}" for step in steps))
    for number in sorted({row["bin"] for row in found["gauge"]}):
        rows = {row["step"]: row for row in found["gauge"] if row["bin"] == number}
        name = f"loss, t {rows[0]['t_low']}-{rows[0]['t_high'] - 1}"
        print(f"{name:24}" + "".join(f"{rows[step]['relative']:8.3f}" for step in steps))
    for name in SHOWN:
        values = {row["step"]: row["value"] for row in found["metrics"] if row["name"] == name}
        held = found["ceiling"].get(name)
        print(
            f"{name:24}"
            + "".join(f"{values[step]:8.3g}" if step in values else f"{'-':>8}" for step in steps)
            + ("" if held is None else f"   held-out {held:.3g}")
        )
    rows = found["correlation"]
    bins = list(dict.fromkeys((row["t_low"], row["t_high"]) for row in rows))
    print("\nSpearman's rho with the held-out loss (95 % interval); positive: where the loss falls, so does the metric")
    print(f"{'':24}" + "".join(f"{'all' if low is None else f't {low}-{high - 1}':>24}" for low, high in bins))
    for name in SHOWN:
        cells = [next(r for r in rows if r["metric"] == name and r["t_low"] == low) for low, _ in bins]
        print(f"{name:24}" + "".join(f"{_cell(cell):>24}" for cell in cells))
    print("\nof the changes from checkpoint to checkpoint, mean over all timesteps")
    for row in found["correlation_of_changes"]:
        if row["metric"] in SHOWN:
            print(f"{row['metric']:24}{_cell(row):>24}")
    frechet = next(row for row in rows if row["metric"] == "frechet_distance" and row["t_low"] is None)
    print(f"\nFrechet distance and mean held-out loss over checkpoints: {_project.told(frechet)}; {verdict(frechet)}")
    print(f"seconds: {found['seconds']}")


def verdict(row: Mapping[str, Any]) -> str:
    """What the interval lets one say."""
    if row["value"] is None:
        return "not measured"
    low = row["value"] if row["low"] is None else row["low"]
    high = row["value"] if row["high"] is None else row["high"]
    if low > 0:
        return "the gauge goes with it"
    return "the gauge contradicts it" if high < 0 else "no relation can be told from none"


def _cell(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "not measured"
    return f"{row['value']:+.2f}" + ("" if row["low"] is None else f" ({row['low']:+.2f} to {row['high']:+.2f})")


def main() -> None:
    """Run the experiment, in a folder that is kept when one is named, and write the results."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--steps", type=int, default=600, help="optimizer steps")
    options.add_argument("--every", type=int, default=50, help="steps between two checkpoints")
    found = _project.in_folder(options, lambda chosen, source: experiment(chosen.steps, chosen.every, source))
    files.write_json(OUT, found)
    show(found)


if __name__ == "__main__":
    main()
