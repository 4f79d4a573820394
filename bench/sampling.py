"""How many steps the fast sampler needs: distance to the exact solution, beside DDIM, and seconds beside the origin's.

From the same start noise, DPM-Solver++ and DDIM (diffusers' own, the peer) solve the same equation for the shipped tiny
model; the exact solution is DDIM with all 1,000 steps. The ancestral sampler has no single solution: its time is told,
and its distance to Open-Sora's recorded outputs.

Of the demo's fine-tuned model, where a finished demo is there (--demo): Frechet distance of samples to held-out clips,
with the origin's 100 ancestral steps and with the fast sampler at a quarter of them and fewer. Limit: within 2 %. The
interval is a jackknife over prompts, of the ratio itself, since both have the same prompts and start noise. A second
ancestral set from other noise shows what 2 % is worth with so many videos. Writes results/bench/sampling.json.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

import _project
from _limits import at_most, judge
from brickreel import tables
from brickreel.diffusion.iddpm import IDDPM
from brickreel.diffusion.sampling import ancestral, guided, recorded, solve
from brickreel.evaluation import distance, features, poses, prompts, statistics
from brickreel.evaluation.generate import defaults, load_pipeline
from brickreel.models import load
from gauge import heldout_captions

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "a red brick tower grows in the centre over a green ground"
SIZES = {"num_frames": 16.0, "height": 64.0, "width": 64.0, "ar": 1.0, "fps": 8.0}
GUIDANCE, CHANNELS = 4.0, 3
STEPS = (10, 20, 40)
EXACT_STEPS = 1000
ANCESTRAL_STEPS, FAST_STEPS = 100, (25, 15, 10)
# Videos generated together, as the sample stage does; which ones changes nothing.
TOGETHER = 8


def ddim() -> DDIMScheduler:
    """The first-order solver of the same equation."""
    return DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False, timestep_spacing="linspace",
        set_alpha_to_one=True,
    )  # fmt: skip


def dpm_solver() -> DPMSolverMultistepScheduler:
    """As the pipeline makes it."""
    config = load.scheduler("iddpm").config
    return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", variance_type=None)


def recorded_difference() -> float:
    """Largest relative difference of the ancestral sampler to the original's outputs, with its recorded noise."""
    sys.path.insert(0, str(ROOT / "tests"))
    import parity

    model, worst = parity.model(), 0.0
    for name in ("plain10_c3", "ref10"):
        case = parity.case("sampling_cases", name)
        steps, channels = case["meta"].tolist()
        null = model.y_embedder.y_embedding.expand(2, 1, -1, -1)
        sizes = parity.made_sizes(2, case["z"].shape[2], fps=8.0)
        denoise = guided(model, case["y"], null, 7.0, channels, mask=case["mask"], **sizes)
        draw = recorded([noise[:2] for noise in case["noises"]])
        out = ancestral(denoise, case["z"], IDDPM(steps), draw, case.get("edit_mask"))
        worst = max(worst, float((out - case["out"]).abs().max() / case["out"].abs().max()))
    return worst


def fine_tuned(demo: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Frechet distances of the demo's exported model to its held-out clips, by sampler."""
    model = demo / "results" / "export" / "demo"
    if not (model / "model_index.json").is_file():
        return {"reason": f"not measured: there is no {model.relative_to(demo.parent)}; run `make demo` first"}
    given = defaults(str(model))
    given.pop("hold")
    with chdir(demo):
        texts = heldout_captions()
        index = tables.read("cut_index", "results/cut/index.parquet").to_pylist()
        clips = [row for row in index if row["split"] == "heldout" and row["kind"] == "clip" and row["outcome"] == "ok"]
        shown = [*poses.windows(clips, given["num_frames"], (given["height"], given["width"]), 1, 128, [])]
    reference = np.concatenate(features.transnetv2([one.poses for one in shown]))
    pipeline = load_pipeline(str(model), "cpu")
    ways = [("iddpm", ANCESTRAL_STEPS, 0), *(("dpm-solver++", steps, 0) for steps in FAST_STEPS)]
    ways.append(("iddpm", ANCESTRAL_STEPS, max(seeds) + 1))
    vectors, rows = {}, []
    for sampler, steps, first in ways:
        began = time.process_time()
        asked = [(text, seed + first) for text in texts for seed in seeds]
        videos: list[Any] = []
        for start in range(0, len(asked), TOGETHER):
            part = asked[start : start + TOGETHER]
            settings = given | {"sampler": sampler, "num_inference_steps": steps}
            noise = [prompts.generator(*one) for one in part]
            videos += list(pipeline([text for text, _ in part], **settings, generator=noise).frames)
        seconds = (time.process_time() - began) / len(videos)
        found = features.transnetv2(videos)
        by_prompt = [np.concatenate(found[place : place + len(seeds)]) for place in range(0, len(found), len(seeds))]
        vectors[sampler, steps, first] = by_prompt
        rows.append({"sampler": sampler, "steps": steps, "first_seed": first, "seconds_per_video": seconds})
    ancestral_set = vectors[ways[0]]
    for way, row in zip(ways, rows, strict=True):
        row |= {"frechet": statistics.jackknife(vectors[way], _to(reference))._asdict()}
        pairs = list(zip(vectors[way], ancestral_set, strict=True))
        if way != ways[0]:
            row |= {"off": statistics.jackknife(pairs, _ratio(reference))._asdict()}
    fast = [row for row in rows if row["sampler"] != "iddpm"]
    best = min(fast, key=lambda row: abs(row["off"]["value"]))
    return {
        "rows": rows, "videos": len(texts) * len(seeds), "prompts": len(texts), "closest_steps": best["steps"],
        "least_off": min(row["off"]["value"] for row in fast),
    }  # fmt: skip


def _to(reference: np.ndarray) -> Callable[[Sequence[np.ndarray]], float]:
    return lambda groups: distance.frechet(np.concatenate(groups), reference)


def _ratio(reference: np.ndarray) -> Callable[[Sequence[tuple[np.ndarray, np.ndarray]]], float]:
    def off(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
        ours, theirs = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
        return distance.frechet(ours, reference) / distance.frechet(theirs, reference) - 1

    return off


def show_fine_tuned(found: dict[str, Any]) -> None:
    """Print distances, and how far each is from the ancestral sampler's."""
    if "rows" not in found:
        print(f"the demo's fine-tuned model: {found['reason']}")
        return
    print(f"the demo's fine-tuned model, {found['videos']} videos of {found['prompts']} prompts:")
    for row in found["rows"]:
        off = row.get("off")
        apart = "" if off is None else "  off by " + " to ".join(
            f"{off[end]:+.1%}" for end in ("value", "low", "high") if off[end] is not None
        ).replace(" to ", " (", 1) + ")"  # fmt: skip
        other = " of other noise" if row["first_seed"] else ""
        print(
            f"{row['sampler']:14} {row['steps']:4} steps{other:15} {row['seconds_per_video']:5.2f} s per video,"
            f" Frechet distance {_project.told(row['frechet'], 4)}{apart}"
        )


@torch.no_grad()
def main() -> None:
    """Measure, print the table and write the results."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--demo", type=Path, default=_project.DEMO, help="a finished demo, with its export")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="videos per prompt")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    pipeline = load_pipeline("builtin:tiny", "cpu")
    y = pipeline.encode_prompt(PROMPT)
    null = pipeline.transformer.y_embedder.y_embedding[: y.shape[2]][None, None]
    sizes = {name: torch.tensor([value]) for name, value in SIZES.items()}
    denoise = guided(pipeline.transformer, y, null, GUIDANCE, CHANNELS, **sizes)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1, pipeline.transformer.config.in_channels, 16, 8, 8, generator=generator)
    exact = solve(denoise, start, ddim(), EXACT_STEPS)
    rows = []
    for steps in STEPS:
        for name, scheduler in (("dpm-solver++", dpm_solver()), ("ddim", ddim())):
            began = time.process_time()
            out = solve(denoise, start, scheduler, steps)
            seconds = time.process_time() - began
            error = float((out - exact).norm() / exact.norm())
            rows.append({"sampler": name, "steps": steps, "seconds": seconds, "distance_to_exact": error})
    began = time.process_time()
    ancestral(denoise, start, IDDPM(100), lambda: torch.randn(start.shape, generator=generator))
    rows.append({"sampler": "iddpm", "steps": 100, "seconds": time.process_time() - began, "distance_to_exact": None})
    for row in rows:
        error = row["distance_to_exact"]
        print(
            f"{row['sampler']:14} {row['steps']:4} steps {row['seconds']:7.2f} s"
            + ("" if error is None else f"  distance to exact {error:.4f}")
        )
    difference = recorded_difference()
    print(f"iddpm with the original's recorded noise: largest relative difference {difference:.1e}")
    tuned = fine_tuned(chosen.demo.resolve(), chosen.seeds)
    show_fine_tuned(tuned)
    limits = [
        at_most("recorded noise: relative difference", difference, 1e-4),
        at_most(f"fine-tuned, {ANCESTRAL_STEPS // 4} steps or fewer: further off", tuned.get("least_off"), 0.02),
    ]
    found = {"rows": rows, "recorded_noise_relative_difference": difference, "guidance": GUIDANCE, "fine_tuned": tuned}
    judge(ROOT / "results" / "bench" / "sampling.json", found, limits)


if __name__ == "__main__":
    main()
