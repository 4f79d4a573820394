"""How many steps the fast sampler needs: distance to the exact solution, beside DDIM, and seconds beside the origin's.

From the same start noise, DPM-Solver++ and DDIM (diffusers' own, the peer) solve the same equation for the shipped tiny
model; the exact solution is DDIM with all 1,000 steps. The ancestral sampler has no single solution: its time is told,
and its distance to Open-Sora's recorded outputs. Writes results/bench/sampling.json.
"""

import sys
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from brickreel import files
from brickreel.diffusion.iddpm import IDDPM
from brickreel.diffusion.sampling import ancestral, guided, recorded, solve
from brickreel.evaluation.generate import load_pipeline
from brickreel.models import load

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "a red brick tower grows in the centre over a green ground"
SIZES = {"num_frames": 16.0, "height": 64.0, "width": 64.0, "ar": 1.0, "fps": 8.0}
GUIDANCE, CHANNELS = 4.0, 3
STEPS = (10, 20, 40)
EXACT_STEPS = 1000


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


@torch.no_grad()
def main() -> None:
    """Measure, print the table and write the results."""
    torch.set_num_threads(1)
    pipeline = load_pipeline("builtin:tiny", "cpu")
    y = pipeline.encode_prompt(PROMPT)
    null = pipeline.transformer.y_embedder.y_embedding[: y.shape[2]][None, None]
    sizes = {name: torch.tensor([value]) for name, value in SIZES.items()}
    denoise = guided(pipeline.transformer, y, null, GUIDANCE, CHANNELS, **sizes)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1, 4, 16, 8, 8, generator=generator)
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
    print(f"iddpm with the original's recorded noise: largest relative difference {difference:.1e} (limit 1e-4)")
    files.write_json(
        ROOT / "results" / "bench" / "sampling.json",
        {"rows": rows, "recorded_noise_relative_difference": difference, "limit": 1e-4, "guidance": GUIDANCE},
    )


if __name__ == "__main__":
    main()
