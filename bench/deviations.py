"""Why one may want to leave the original's arithmetic: what each named deviation changes, in numbers.

Each is off by default, since the released weights were trained without it; they are for training from scratch.

- norm-before-rope: attention across time should depend on how far frames are apart, not on where they stand. The
  original rotates first and then multiplies each channel by a learned weight, which is no rotation's friend. Measured
  with the shipped model's own norm weights: how much a logit changes when both frames move on by a few.
- exact-scalars: bf16 has 8 bits of precision. How many of the 1,000 timesteps, of the sizes and of the rates are told
  apart after rounding.
- single-final-norm: the original norms clean frames twice in the final layer. Nothing that is trained on sees it: the
  noised frames come out the same to the bit. The time of both is told; on a CPU the difference drowns in noise.
- fps_input (a setting of a run's data): the rate that the model is told, against the rate at which it is shown poses,
  over the shots of the demo films: told the film's own 24 frames per second, twos and threes look like ones in a hurry.

Writes results/bench/deviations.json.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from brickreel import files
from brickreel.config import RunData
from brickreel.films import demo
from brickreel.models import load
from brickreel.models.stdit2 import STDiT2
from brickreel.models.stdit2.fused import head_norm
from brickreel.training.showing import told_rate

FRAMES, SHIFTS, DRAWS = 16, (1, 4, 16), 256
RATES = (8.0, 12.0, 23.976, 24.0, 25.0, 29.97, 30.0)
SIDES = range(144, 1281, 16)


@torch.no_grad()
def shift_sensitivity() -> dict[str, float]:
    """Root mean square change of a logit under a common shift of both frames, relative to the logits' own spread."""
    model = load.transformer("builtin:tiny")
    found = {}
    for name, norm_first in (("original", False), ("norm-before-rope", True)):
        changes, logits = [], []
        for block in model.blocks:
            norms = block.attn_temp.q_norm, block.attn_temp.k_norm
            draws = torch.randn(2, DRAWS, FRAMES, 1, 1, norms[0].weight.shape[0])
            for shift in SHIFTS:
                pair = [_logits(model, draws, norms, norm_first, first) for first in (0, shift)]
                changes.append((pair[1] - pair[0]).square().mean())
                logits.append(pair[0].var())
        found[name] = float((torch.stack(changes).mean() / torch.stack(logits).mean()).sqrt())
    return found


def _logits(model: Any, draws: torch.Tensor, norms: Any, norm_first: bool, first: int) -> torch.Tensor:
    """[DRAWS, FRAMES, FRAMES] logits of the frames that stand from `first` on."""
    cos, sin = (part[first:, None, None, :] for part in model.rope(first + FRAMES))
    q, k = (
        head_norm(part, weight=norm.weight, rope=(cos, sin), norm_first=norm_first)[:, :, 0, 0]
        for part, norm in zip(draws, norms, strict=True)
    )
    return q @ k.transpose(1, 2) / q.shape[-1] ** 0.5


def told_apart() -> dict[str, str]:
    """Values that stay different after rounding to bf16."""
    found = {}
    for name, values in {"timesteps": range(1000), "sides": SIDES, "rates": RATES}.items():
        rounded = torch.tensor([float(value) for value in values]).bfloat16()
        found[name] = f"{len(set(rounded.tolist()))} of {len(values)}"
    return found


@torch.no_grad()
def final_layer() -> dict[str, Any]:
    """The final layer's time with and without the second norm, as a share of a whole forward pass."""
    models = {}
    for name, deviations in (("original", ()), ("single-final-norm", ("single-final-norm",))):
        torch.manual_seed(0)
        models[name] = STDiT2(4, 288, 4, 512, 32, deviations=deviations).eval()
        for parameter in models[name].parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        if name != "original":
            models[name].load_state_dict(models["original"].state_dict())
    x, y = torch.randn(1, 4, 16, 23, 40), torch.randn(1, 1, 16, 512)
    x_mask = torch.arange(16)[None] >= 4
    sizes = {"num_frames": 16.0, "height": 184.0, "width": 320.0, "fps": 12.0}
    kwargs = {name: torch.tensor([value]) for name, value in sizes.items()}
    out, seconds = {}, {name: [] for name in models}
    for _ in range(7):
        for name, model in models.items():
            began = time.perf_counter()
            out[name] = model(x, torch.tensor([500.0]), y, x_mask=x_mask, **kwargs)
            seconds[name].append(time.perf_counter() - began)
    same = bool(torch.equal(*(one[:, :, 4:] for one in out.values())))
    times = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "noised_frames_same": same,
        "forward_s": times,
        "saved": 1 - times["single-final-norm"] / times["original"],
    }


def rates_told() -> dict[str, Any]:
    """Over the demo's shots: how far the told rate is from the rate of the poses that are shown, as a factor."""
    with tempfile.TemporaryDirectory() as folder:
        truth = demo.render(folder, seed=0, scale=0.1, with_broken=False)
    shots = [shot for film in truth["films"] for shot in film["shots"] if shot["kind"] == "scene"]
    found = {}
    for way in ("shown", "source"):
        data = RunData(time="poses", fps_input=way, buckets={"64p": {16: (1.0, 1)}})
        factors = [told_rate(data, 24.0, shot["pose_rate"]) / shot["pose_rate"] for shot in shots]
        found[way] = {"median": statistics.median(factors), "worst": max(factors)}
    return {"shots": len(shots), "told_over_shown": found}


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {
        "norm-before-rope": shift_sensitivity(),
        "exact-scalars": told_apart(),
        "single-final-norm": final_layer(),
        "fps_input": rates_told(),
    }
    files.write_json(Path("results/bench/deviations.json"), found)
    shift, told = found["norm-before-rope"], found["fps_input"]["told_over_shown"]
    print(f"a logit's change when both frames move on: original {shift['original']:.1%} of the logits' spread,")
    print(f"  norm-before-rope {shift['norm-before-rope']:.1%}")
    print("told apart in bf16:", ", ".join(f"{count} {name}" for name, count in found["exact-scalars"].items()))
    final = found["single-final-norm"]
    print(f"single-final-norm: noised frames the same {final['noised_frames_same']}, time saved {final['saved']:.1%}")
    print(f"rate told over rate shown: fps_input shown {told['shown']}, source {told['source']}")


if __name__ == "__main__":
    main()
