"""From buckets, model and machine to the parts of plan.json."""

from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

from brickreel.config import Base, Encode, Lora, Plan, Run
from brickreel.evaluation import activations, calibration, forecast, hardware
from brickreel.evaluation.activations import Activations, Precision, Shape
from brickreel.evaluation.forecast import GIB, Interval
from brickreel.evaluation.machine import Machine
from brickreel.models import load
from brickreel.training.arithmetic import PASSES, Arithmetic
from brickreel.training.buckets import Bucket, BucketPlan
from brickreel.training.encoding import choose_device
from brickreel.training.gauge import clips_within_budget
from brickreel.training.lora import inject

# Pixels per latent row and column: the base models' autoencoders halve three times.
DOWNSAMPLE = 8


class Model(NamedTuple):
    """The transformer's sizes, without its weights."""

    folder: Path
    sizes: Any
    parameters: int
    trained: int
    """Parameters that are trained: all of them, or the additions of a LoRA run."""
    arithmetic: Arithmetic
    lora: Lora | None = None

    @classmethod
    def read(cls, folder: Path, lora: Lora | None = None) -> Self:
        """From a folder with a config.json; weights need not be there."""
        with torch.device("meta"):
            model = load.empty_transformer(folder)
            parameters = sum(parameter.numel() for parameter in model.parameters())
            if lora:
                inject(model, lora, seed=0)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return cls(folder, model.config, parameters, trained, Arithmetic.of(model), lora)

    @property
    def held(self) -> int:
        """Parameters that a rank holds: LoRA's additions come on top of the model."""
        return self.parameters + (self.trained if self.lora else 0)

    def build(self, blocks: int | None = None) -> Any:
        """The transformer as it is trained, freshly initialised, on whatever device is current."""
        model = load.empty_transformer(self.folder, depth=blocks) if blocks else load.empty_transformer(self.folder)
        return inject(model, self.lora, seed=0) if self.lora else model


class Work(NamedTuple):
    """What one optimizer step consists of, on average over an epoch."""

    buckets: BucketPlan
    model: Model
    text_tokens: int
    steps: int
    micro_batches: int
    """Per step."""

    @classmethod
    def of(cls, buckets: BucketPlan, settings: Run, model: Model, text_tokens: int) -> Self:
        """The work of a run's steps."""
        return cls(
            buckets,
            model,
            min(text_tokens, int(model.sizes.model_max_length)),
            settings.max_steps,
            settings.micro_batches,
        )

    @property
    def epochs_per_step(self) -> float:
        """Share of an epoch that a step shows."""
        return self.micro_batches / self.buckets.micro_batches

    def rounds(self, ranks: int) -> int:
        """Micro-batches that each rank takes per step, one after another."""
        return -(-self.micro_batches // ranks)

    def shape(self, bucket: Bucket) -> Shape:
        """A micro-batch of this bucket; no larger than the bucket."""
        return Shape(
            min(bucket.batch, bucket.slots),
            bucket.frames,
            bucket.height // DOWNSAMPLE,
            bucket.width // DOWNSAMPLE,
            self.text_tokens,
            int(self.model.sizes.caption_channels),
            bucket.height,
            bucket.width,
            int(self.model.sizes.in_channels),
        )

    def forward_flops(self, bucket: Bucket) -> float:
        """FLOPs of one sample's forward pass."""
        return self.model.arithmetic.forward_flops(*self._grid(bucket))

    def _grid(self, bucket: Bucket) -> tuple[int, int, int, int]:
        shape = self.shape(bucket)
        return shape.frames, shape.latent_height, shape.latent_width, shape.text_tokens

    def tokens(self, bucket: Bucket) -> int:
        """Patches of one sample."""
        shape = self.shape(bucket)
        _, rows, columns = self.model.sizes.patch_size
        return shape.frames * -(-shape.latent_height // rows) * -(-shape.latent_width // columns)

    @property
    def flops_per_step(self) -> float:
        """Forward and backward, without recomputation."""
        work = self.model.arithmetic
        shown = sum(bucket.shown * work.training_flops(*self._grid(bucket)) for bucket in self.buckets.buckets)
        return self.epochs_per_step * shown

    @property
    def passes(self) -> float:
        """Forward passes that cost as much as training on a sample does: 3, or about 2 with LoRA."""
        forward = sum(bucket.shown * self.forward_flops(bucket) for bucket in self.buckets.buckets)
        return self.flops_per_step / (self.epochs_per_step * forward)

    def at_work(self, ranks: int) -> float:
        """Ranks that have something to do, on average: the others compute padding."""
        return self.micro_batches / self.rounds(ranks)


def sizes(work: Work) -> dict[str, Any]:
    """Steps, epochs, tokens and FLOPs: known exactly."""
    tokens = sum(bucket.shown * work.tokens(bucket) for bucket in work.buckets.buckets)
    return {
        "steps": work.steps,
        "epochs": _short(work.steps * work.epochs_per_step),
        "samples_per_step": _short(work.buckets.samples * work.epochs_per_step),
        "tokens_per_step": round(tokens * work.epochs_per_step),
        "flops_per_step": _short(work.flops_per_step),
        "per_bucket": [
            {
                "name": bucket.name,
                "clips": bucket.items,
                "micro_batch": bucket.batch,
                "micro_batches_per_epoch": bucket.micro_batches,
                "tokens_per_sample": work.tokens(bucket),
                "forward_tflop_per_sample": _short(work.forward_flops(bucket) / 1e12),
            }
            for bucket in work.buckets.buckets
        ],
    }


def disk(work: Work, settings: Run, encoded: int | None) -> dict[str, Any]:
    """GiB of latents with text (measured, or counted from shapes) and of the checkpoints kept at once."""
    text = forecast.text_bytes(work.text_tokens, int(work.model.sizes.caption_channels))
    counted = 0
    for bucket in work.buckets.buckets:
        shape = work.shape(bucket)
        latent = forecast.latent_bytes(shape.frames, shape.latent_height, shape.latent_width, shape.channels)
        counted += bucket.items * (latent + text)
    # The newest ones, those with the best gauge, and the one that is being written.
    kept = settings.keep_last + settings.keep_best + 1
    if settings.keep_every:
        kept += settings.max_steps // settings.keep_every
    kept = min(kept, settings.max_steps // settings.checkpoint_every + 2)
    final = 2 * 4 * work.model.parameters
    return {
        "disk_gib": {
            "latents": _short((counted if encoded is None else encoded) / GIB),
            "latents_basis": "counted from shapes" if encoded is None else "files on disk",
            "checkpoints": _short(kept * forecast.checkpoint_bytes(work.model.trained) / GIB),
            "checkpoints_kept": kept,
            "final": _short(final / GIB),
        }
    }


def encoder_bytes(base: Base, encode: Encode, on_gpu: bool) -> int | None:
    """Bytes of the weights of autoencoder and text encoder; None where one of them is not on this machine."""
    from diffusers import AutoencoderKL
    from transformers import T5Config, T5EncoderModel

    try:
        images = load.locate("autoencoder", **base.autoencoder.model_dump())
        words = load.locate("text_encoder", **base.text_encoder.model_dump())
    except FileNotFoundError:
        return None
    with torch.device("meta"):
        models = (
            AutoencoderKL.from_config(AutoencoderKL.load_config(images)),
            T5EncoderModel(T5Config.from_pretrained(words)),
        )
    dtype = getattr(torch, encode.dtype) if on_gpu else torch.float32
    return dtype.itemsize * sum(parameter.numel() for model in models for parameter in model.parameters())


def memory(work: Work, settings: Run, site: Machine, encoders: int | None = None) -> dict[str, Any]:
    """GiB per rank, of the bucket that takes most. Raises ValueError when that is more than the GPU has.

    `encoders` is what `encoder_bytes` tells, for a run that encodes online.
    """
    ranks = site.gpus or 1
    gpu = hardware.gpu(site.gpu)
    backend = settings.backend if settings.backend != "auto" else ("fsdp2" if ranks > 1 else "ddp")
    precision = _precision(backend, settings)
    depth = int(work.model.sizes.depth)
    counted: dict[Bucket, Activations] = {
        bucket: activations.activations(work.model.build, depth, work.shape(bucket), precision)
        for bucket in _largest(work)
    }
    recomputed = round(settings.grad_checkpoint * depth)
    bucket, worst = max(counted.items(), key=lambda item: item[1].at(recomputed))
    name = bucket.name
    held = forecast.states(work.model.held, work.model.trained, backend, ranks, work.rounds(ranks))
    if backend == "ddp" and ranks == 1 and work.micro_batches == 1:
        # Nobody holds memory for gradients before the only backward pass makes them, while activations go.
        both = activations.activations(work.model.build, depth, work.shape(bucket), precision, gradients_stand=False)
        held["gradients"] = max(both.at(recomputed), held["gradients"]) - worst.at(recomputed)
    if settings.online and encoders is not None:
        held["encoders"] = encoders
    checkpointed = worst.at(recomputed or depth)
    parts = forecast.memory_gib(held, worst.plain, checkpointed, bool(recomputed), bool(site.gpu))
    if gpu and parts["total"] > gpu.memory_gib:
        advice = (
            "make its micro-batch smaller" if recomputed == depth else "set grad_checkpoint: true or smaller batches"
        )
        raise ValueError(
            f"bucket {name} needs {parts['total']:.1f} GiB per GPU with {backend} on {ranks} GPUs, an {gpu.part} has"
            f" {gpu.memory_gib:.1f}: {advice}"
        )
    return {
        "memory_gib": parts,
        "memory_basis": {
            "bucket": name,
            "backend": backend,
            "ranks": ranks,
            "grad_checkpoint": settings.grad_checkpoint,
            "parameters": work.model.parameters,
            "trained": work.model.trained,
            "gpu_memory_gib": gpu.memory_gib if gpu else None,
            "reason": ENCODERS_MISSING if settings.online and encoders is None else None,
        },
    }


ENCODERS_MISSING = "not counted: autoencoder and text encoder, which online training keeps on every GPU"


def _precision(backend: str, settings: Run) -> Precision:
    """Weights stay in fp32 with all backends but colossalai, which casts the model itself."""
    if settings.precision == "fp32":
        return Precision(torch.float32)
    return Precision(torch.bfloat16) if backend == "colossalai" else Precision(torch.float32, torch.bfloat16)


# Activations grow with tokens and, a little, with what attention keeps per text token: the two buckets with most
# tokens per micro-batch hold the largest.
MOST_COUNTED = 2


def _largest(work: Work) -> list[Bucket]:
    ordered = sorted(work.buckets.buckets, key=lambda bucket: -work.shape(bucket).batch * work.tokens(bucket))
    return ordered[:MOST_COUNTED]


def cost(work: Work, settings: Run, assumed: Plan, site: Machine, peak_tflops: float | None) -> dict[str, Any]:
    """Hours, energy and money with intervals, and what they rest on."""
    gpu = hardware.gpu(site.gpu)
    ranks = site.gpus or 1
    if assumed.calibrate:
        step_s, basis = _measured(work, settings, assumed, ranks)
    elif site.gpu is None or peak_tflops is None:
        known = "is not set" if site.gpu is None else f"{site.gpu} is in no table of peaks"
        reason = f"not known: BRICKREEL_GPU {known}; set it in slurm/site.env, or set plan.calibrate: true"
        step_s, basis = forecast.unknown(reason), {"kind": "none"}
    else:
        mfu = assumed.mfu, assumed.mfu_low, assumed.mfu_high
        # It is of runs that recompute all blocks, whose steps take one forward pass more.
        passes = (work.passes + settings.grad_checkpoint) / work.passes / ((PASSES + 1) / PASSES)
        step_s = forecast.step_seconds(work.flops_per_step, work.at_work(ranks), peak_tflops, mfu).scaled(passes)
        basis = {"kind": "assumed MFU", "mfu": list(mfu), "peak_tflops": peak_tflops}
    wall = forecast.hours(work.steps, step_s.scaled(1 + _gauge_share(work, settings)))
    no_gpu = forecast.unknown("not known: BRICKREEL_GPU is not set in slurm/site.env; this machine has no GPU to count")
    gpu_hours = wall.scaled(ranks) if site.gpu else no_gpu
    kwh = forecast.energy(gpu_hours, gpu.power_w if gpu else None)
    usd = forecast.money(gpu_hours, kwh, site.usd_per_gpu_hour, site.usd_per_kwh)
    return {
        "step_s": step_s.json(),
        "gpu_hours": gpu_hours.json(),
        "wall_h": wall.json(),
        "energy_kwh": kwh.json(),
        "usd": usd.json(),
        "basis": basis | {"gpu": site.gpu, "gpus": site.gpus, "gauge_share": _short(_gauge_share(work, settings))},
    }


def _gauge_share(work: Work, settings: Run) -> float:
    """Forward passes of the held-out readings, as a share of training's work."""
    clips = clips_within_budget(settings, work.buckets, work.buckets.heldout)
    readings = 1 + settings.max_steps / settings.gauge_every
    forwards = readings * clips * settings.gauge_bins * 2
    trained = settings.max_steps * work.buckets.samples * work.epochs_per_step
    return forwards / (work.passes * trained)


def _measured(work: Work, settings: Run, assumed: Plan, ranks: int) -> tuple[Interval, dict[str, Any]]:
    """Seconds per step from a few micro-batches of every bucket on this machine."""
    device = choose_device("auto")
    model = work.model.build()
    model.to(device).train()
    model.recompute(settings.grad_checkpoint)
    shapes = [work.shape(bucket) for bucket in work.buckets.buckets]
    timings = calibration.micro_batches(model, shapes, settings, device, 0.8 * assumed.calibrate_s)
    update = calibration.update(model, device, 0.2 * assumed.calibrate_s)
    shares = [bucket.micro_batches for bucket in work.buckets.buckets]
    step_s = calibration.step(timings, shares, work.rounds(ranks), update)
    return step_s, {
        "kind": "calibration",
        "device": str(device),
        "threads": torch.get_num_threads(),
        "micro_batch_s": {
            bucket.name: _short(timing.median) for bucket, timing in zip(work.buckets.buckets, timings, strict=True)
        },
        "update_s": _short(update.median),
    }


def _short(value: float) -> float:
    """Six significant digits: what is counted exactly still need not fill the line."""
    return float(f"{value:.6g}")
