"""A training step: beside a plain PyTorch loop, on two ranks, and with clips encoded online at every step.

All at the demo's size: the tiny transformer, 8 clips of 16 poses at 64 x 64 pixels per step. In one process seconds
are processor time on one thread, so that other work on the machine does not count; on two ranks they are the clock's.
Writes results/bench/train.json.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import _project
from _limits import at_least, at_most, judge
from brickreel import config, files, tables
from brickreel.diffusion.iddpm import IDDPM
from brickreel.models.stdit2 import STDiT2
from brickreel.models.stdit2.flops import forward_flops
from brickreel.stages import encode, train
from brickreel.training import objective
from brickreel.training.buckets import plan_buckets
from films import synth
from training import clips, ranks

RUN: dict[str, Any] = {
    "data": {"time": "poses", "buckets": {"64p": {16: [1.0, 8]}}},
    "schedule": {"kind": "constant", "lr": 1e-4},
    "max_steps": 1000,
    "micro_batches": 2,
    "precision": "fp32",
    "grad_checkpoint": False,
    "checkpoint_every": 1000,
    "gauge_every": 1000,
}
ROUNDS, STEPS = 3, 6
RANK_STEPS = 40


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    result: dict[str, Any] = {"load_average": os.getloadavg()[0]}
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "beside_plain_loop": beside_plain_loop,
        "on_two_ranks": on_two_ranks,
        "online": lambda: online(180),  # clips as the demo's films are
        "online_720": lambda: online(720),  # clips as `cut` writes them by default
    }
    for name, measure in measures.items():
        with tempfile.TemporaryDirectory() as place, chdir(place):
            result[name] = measure()
    plain, two, encoded = (result[name] for name in ("beside_plain_loop", "on_two_ranks", "online"))
    large = result["online_720"]
    print(f"step beside a plain loop       {plain['ratio']:.2f} times its time")
    for backend in ("ddp", "fsdp2"):
        shares = two[backend]
        print(
            f"{backend:5s} on two ranks             {shares['step_s']:.3f} s, {shares['outside_share']:.1%} outside"
            " forward, backward, optimizer"
        )
    print(f"a rank's work without exchange {two['without_communication_s']:.3f} s")
    print(f"encoded once, beside online    {encoded['gain']:.2f} times the clips")
    print(f"  from clips of 720 rows       {large['gain']:.2f} times")
    ahead = encoded["forecast_xl2_360p_32f"]["online_to_cached"]
    print(f"forecast for XL/2, 360p, 32f   online takes {ahead:.2f} times the FLOPs, decoding not counted")
    limits = [
        at_most("step beside a plain loop", plain["ratio"], 1.05),
        *(at_most(f"{backend}, outside_share", two[backend]["outside_share"], 0.05) for backend in ("ddp", "fsdp2")),
        at_least("encoded once, beside online, from clips of 720 rows", large["gain"], 3),
    ]
    judge("results/bench/train.json", result, limits)


def beside_plain_loop() -> dict[str, float]:
    """Our loop with loader, checks, log and average, and the least code that trains the same model the same way."""
    settings = _project.write(RUN, clips=64, latent=(8, 16, 8, 8), tokens=24, channels=_text_channels())
    ours = _project.trainer(settings)
    plain = PlainLoop(settings)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(ROUNDS + 1):
        for name, work in (("ours", lambda: list(_project.steps(ours, STEPS))), ("plain", lambda: plain.run(STEPS))):
            spent = _processor_seconds(work) / STEPS
            if number:  # the first round warms up
                seconds[name].append(spent)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "ours_s_per_step": middle["ours"],
        "plain_s_per_step": middle["plain"],
        "ratio": middle["ours"] / middle["plain"],
        "loss_difference": abs(plain.first_loss - _first_loss(settings)),
    }


class PlainLoop:
    """Model, AdamW, clipping and average as a script would have them; all data in memory, read before the clock."""

    def __init__(self, settings: dict) -> None:
        made = _project.trainer(settings, folder="results/train/plain")
        self.model, self.run_settings, self.diffusion = made.backend.model, made.run, IDDPM()
        numbers = range(2 * STEPS * (ROUNDS + 1))
        self.batches = [made.dataset.batch(made.order.micro_batch(number)) for number in numbers]
        self.weights = [value for value in self.model.parameters() if value.requires_grad]
        self.average = [value.detach().clone() for value in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4, weight_decay=0.0, fused=True)
        self.first_loss = 0.0

    def run(self, count: int) -> None:
        """Train `count` steps of two micro-batches."""
        for _ in range(count):
            self.optimizer.zero_grad()
            loss = torch.zeros(())
            for batch in (self.batches.pop(0), self.batches.pop(0)):
                drawn = objective.draw(batch, self.run_settings, _project.CPU)
                part = objective.losses(self.diffusion, self.model, batch, drawn).sum() / 16
                part.backward()
                loss += part.detach()
            nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.weights, 1 - 0.9999)
            self.first_loss = self.first_loss or float(loss)


def _first_loss(settings: dict) -> float:
    return next(iter(_project.steps(_project.trainer(settings, folder="results/train/again"), 1)))["loss"]


def on_two_ranks() -> dict[str, Any]:
    """Shares of a step on two ranks by the step log, and the same work of each rank without communication."""
    found: dict[str, Any] = {}
    folder = Path.cwd()
    for backend in ("ddp", "fsdp2"):
        run = RUN | {"backend": backend, "max_steps": RANK_STEPS, "checkpoint_every": 10**6, "gauge_every": 10**6}
        _project.write(run, clips=64, latent=(8, 16, 8, 8), tokens=24, channels=_text_channels())
        assert ranks.run(folder, ["train", "--run", "bench", "--config", "config.json"], 2) == [0, 0], ranks.output(
            folder
        )
        found[backend] = _shares(folder / "results/train/bench/steps")
        (folder / "results/train/bench").rename(folder / f"results/train/{backend}")
    # Two processes of one rank each, beside each other, with one micro-batch per step: what a rank has of the step.
    run = RUN | {"backend": "ddp", "max_steps": RANK_STEPS, "micro_batches": 1, "gauge_every": 10**6}
    alone = []
    for number in range(2):
        place = folder / f"alone{number}"
        place.mkdir()
        with chdir(place):
            _project.write(run, clips=64, latent=(8, 16, 8, 8), tokens=24, channels=_text_channels())
    processes = [
        ranks.start(folder / f"alone{number}", ["train", "--run", "bench", "--config", "config.json"])
        for number in range(2)
    ]
    for group in processes:
        assert ranks.finish(group) == [0]
    for number in range(2):
        alone.append(_shares(folder / f"alone{number}/results/train/bench/steps")["step_s"])
    found["without_communication_s"] = max(alone)
    return found


def _shares(folder: Path) -> dict[str, float]:
    """Medians over steps of the slower rank, the first and last steps left out."""
    rows = [row for path in sorted(folder.glob("*.jsonl")) for row in tables.read_log("steps", path).to_pylist()]
    rows = [row for row in rows if 5 < row["step"] < RANK_STEPS]
    work = ("forward_s", "backward_s", "optimizer_s")
    outside = [1 - sum(row[part] for part in work) / row["step_s"] for row in rows]
    named = {part: statistics.median(row[part] / row["step_s"] for row in rows) for part in ("data_s", "comm_s")}
    return {
        "step_s": statistics.median(row["step_s"] for row in rows),
        "outside_share": statistics.median(outside),
        "of_that_data": named["data_s"],
        "of_that_communication": named["comm_s"],
    }


def online(height: int) -> dict[str, Any]:
    """Clips per second with latents encoded once, and with decoding `height` rows and encoding at every step."""
    width = height * 16 // 9
    rows = []
    for number in range(8):
        path = Path(f"results/cut/clips/clip{number}.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        clips.video.write(path, synth.scene(number, 24, height=height, width=width), 24, holds=[2] * 24)
        rows.append(clips.row(number, "clip", path, frames=48, holds=[2] * 24, width=width, height=height))
        rows[-1] |= {"split": "train", "text": clips.TEXTS[number % 3]}
    tables.write("cut_index", "results/cut/index.parquet/00.parquet", rows)
    run = RUN | {"micro_batches": 1}
    base = {part: {"path": "builtin:tiny"} for part in ("transformer", "autoencoder", "text_encoder")}
    settings = {"base": base, "encode": {"text_tokens": 48}, "runs": {"cached": run, "online": run | {"online": True}}}
    checked = config.load(settings)
    encode_s = _processor_seconds(lambda: encode.run(checked))
    index = tables.read("encode_index", train.INDEX)
    for name in checked.runs:
        plan = plan_buckets(index, checked.run(name))
        files.write_json(f"results/plan/{name}/plan.json", {"run": name, "buckets": plan.to_json()})
    seconds: dict[str, list[float]] = {"cached": [], "online": []}
    made = {name: _project.trainer(settings, name, f"results/train/{name}") for name in seconds}
    for number in range(ROUNDS + 1):
        for name, one in made.items():
            spent = _processor_seconds(lambda one=one: list(_project.steps(one, 3))) / 3
            if number:
                seconds[name].append(spent)
    per_second = {name: 8 / statistics.median(values) for name, values in seconds.items()}
    return {
        "clips_per_s_cached": per_second["cached"],
        "clips_per_s_online": per_second["online"],
        "gain": per_second["cached"] / per_second["online"],
        "encode_once_s_per_clip": encode_s / 8,
        "parameters": _sizes(made["online"]),
        "forecast_xl2_360p_32f": forecast(),
    }


def _sizes(made: Any) -> dict[str, int]:
    encoder = made.dataset.reader.encoder
    parts = {"transformer": made.backend.model, "autoencoder": encoder.autoencoder.vae}
    parts["text_encoder"] = encoder.text_encoder.model
    return {name: sum(value.numel() for value in part.parameters()) for name, part in parts.items()}


def forecast() -> dict[str, float]:
    """Counted FLOPs per clip of the origin's models: what encoding at every step adds to training."""
    from diffusers import AutoencoderKL
    from transformers import T5Config, T5EncoderModel

    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        sizes = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
        t5 = T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu", is_encoder_decoder=False))
        frame, ids = torch.empty(1, 3, 360, 640), torch.zeros(1, 200, dtype=torch.long)
        xl2 = STDiT2()
    vae_flops = 32 * _flops(lambda: vae.encode(frame))
    t5_flops = _flops(lambda: t5(input_ids=ids))
    training = 3 * forward_flops(xl2.config, 32, 45, 80, 200)
    return {
        "sd_vae_tflop": vae_flops / 1e12,
        "t5_xxl_tflop": t5_flops / 1e12,
        "transformer_forward_and_backward_tflop": training / 1e12,
        "online_to_cached": (vae_flops + t5_flops + training) / training,
    }


def _flops(action: Callable[[], Any]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def _text_channels() -> int:
    from brickreel.models import load

    return json.loads((load.locate("transformer", "builtin:tiny") / "config.json").read_text())["caption_channels"]


def _processor_seconds(action: Callable[[], Any]) -> float:
    begun = time.process_time()
    action()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
