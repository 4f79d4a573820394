"""The arithmetic of a forecast: from FLOPs and sizes to memory, hours, energy and money. Pure functions, no files.

FLOPs of a step: 3 x forward (the backward pass costs two forward passes; Kaplan et al. 2020, section 2.1), summed over
its samples; about 2 x forward with LoRA (`training.arithmetic`). Recomputation under checkpointing is not model work
and not counted; MFU is measured without it too.
Step time: FLOPs / (GPUs at work x peak x MFU). GPU-hours: steps x step time x GPUs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

GIB = 2**30

# Bytes per parameter and how they are spread: (what, bytes, divided by the number of ranks).
# AdamW keeps two moments; EMA one more copy. The names are the backends of `runs.*.backend`.
STATES: Mapping[str, Sequence[tuple[str, float, bool]]] = {
    "ddp": (("weights", 4, False), ("gradients", 4, False), ("optimizer", 8, False), ("ema", 4, False)),
    "fsdp2": (("weights", 4, True), ("gradients", 4, True), ("optimizer", 8, True), ("ema", 4, True)),
    # ZeRO-2: half-precision working weights everywhere; gradients, their fp32 master and moments sharded.
    "colossalai": (("weights", 2, False), ("gradients", 2, True), ("optimizer", 12, True), ("ema", 4, True)),
}
# What a CUDA context, the libraries' workspaces and the allocator's fragmentation take on top, on a GPU.
GPU_OVERHEAD_GIB = 2.0
FRAGMENTATION = 1.05


class Interval(NamedTuple):
    """A forecast number; all None with a reason where it cannot be said."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    def scaled(self, factor: float) -> "Interval":
        """Times a number known exactly."""
        value, low, high = (None if part is None else part * factor for part in self[:3])
        return Interval(value, low, high, self.reason)

    def json(self) -> dict[str, Any]:
        """As it stands in plan.json: four significant digits are more than a forecast has."""
        parts = {name: _rounded(getattr(self, name)) for name in ("value", "low", "high")}
        return {**parts, "reason": self.reason}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def unknown(reason: str) -> Interval:
    """A number that cannot be said, and why."""
    return Interval(None, reason=reason)


def step_seconds(flops_per_step: float, gpus: float, peak_tflops: float, mfu: tuple[float, float, float]) -> Interval:
    """Seconds per optimizer step at an assumed MFU (value, low, high); `gpus` are those at work, on average."""
    at = [flops_per_step / (gpus * peak_tflops * 1e12 * share) for share in mfu]
    return Interval(at[0], at[2], at[1])


def hours(steps: int, step_s: Interval, outside_s: float = 0.0) -> Interval:
    """Wall time of a run in hours; `outside_s` seconds are spent outside of steps, such as on the gauge."""
    if step_s.value is None:
        return step_s
    value, low, high = (None if part is None else (steps * part + outside_s) / 3600 for part in step_s[:3])
    return Interval(value, low, high)


def energy(gpu_hours: Interval, power_w: float | None) -> Interval:
    """kWh of the GPU boards alone: 90 % of board power, 60 % when bound by memory, 100 % when bound by compute."""
    if power_w is None:
        return unknown("not known: the GPU's board power is in no table (set BRICKREEL_GPU)")
    if gpu_hours.value is None:
        return gpu_hours
    kilowatts = power_w / 1000
    return Interval(
        gpu_hours.value * kilowatts * 0.9, (gpu_hours.low or 0) * kilowatts * 0.6, (gpu_hours.high or 0) * kilowatts
    )


def money(gpu_hours: Interval, kwh: Interval, usd_per_gpu_hour: float | None, usd_per_kwh: float | None) -> Interval:
    """USD: the price of GPU-hours, or else of their electricity. Without a price it is not known, and never 0."""
    if usd_per_gpu_hour is not None:
        return gpu_hours.scaled(usd_per_gpu_hour)
    if usd_per_kwh is not None:
        return kwh.scaled(usd_per_kwh)
    return unknown("no price is set: put BRICKREEL_USD_PER_GPU_HOUR or BRICKREEL_USD_PER_KWH into slurm/site.env")


def states(parameters: int, trained: int, backend: str, ranks: int, rounds: int = 1) -> dict[str, float]:
    """Bytes per rank of weights, gradients, optimizer and EMA. Raises ValueError for an unknown backend.

    Args:
        trained: how many of the parameters have more than their weight: the others are frozen by LoRA.
        rounds: micro-batches that each rank takes per step, one after another.
    """
    if backend not in STATES:
        raise ValueError(f"there is no backend '{backend}': choose from {', '.join(STATES)}")
    held = {
        name: (parameters if name == "weights" else trained) * size / (ranks if spread else 1)
        for name, size, spread in STATES[backend]
    }
    if backend == "fsdp2" and rounds > 1:
        # It exchanges gradients in a step's last micro-batch: until then each rank adds up whole ones, in fp32.
        held["gradients"] = 4.0 * trained
    return held


def memory_gib(
    held: Mapping[str, float], plain: float, checkpointed: float, grad_checkpoint: bool, on_gpu: bool
) -> dict[str, float]:
    """Peak memory of one rank in GiB, by what takes it.

    Args:
        held: bytes of weights, gradients, optimizer and EMA, as `states` gives them, and of what else stays.
        plain: bytes of activations; `checkpointed` the same with the run's checkpoints, or with all where it has none.
    """
    parts = {name: size / GIB for name, size in held.items()}
    parts["activations"] = plain / GIB
    parts["activations_checkpointed"] = checkpointed / GIB
    chosen = "activations_checkpointed" if grad_checkpoint else "activations"
    other = "activations" if grad_checkpoint else "activations_checkpointed"
    total = sum(size for name, size in parts.items() if name != other)
    if on_gpu:
        parts["overhead"] = GPU_OVERHEAD_GIB + (FRAGMENTATION - 1) * parts[chosen]
        total += parts["overhead"]
    parts["total"] = total
    return {name: float(f"{size:.4g}") for name, size in parts.items()}


def checkpoint_bytes(trained: int) -> int:
    """A checkpoint: weights, EMA and two moments of what is trained, in fp32."""
    return 16 * trained


def latent_bytes(frames: int, latent_height: int, latent_width: int, channels: int = 4) -> int:
    """Mean and log-variance of one clip in bf16."""
    return 2 * frames * latent_height * latent_width * channels * 2


def text_bytes(tokens: int, channels: int) -> int:
    """The embedding of one prompt in bf16."""
    return tokens * channels * 2
