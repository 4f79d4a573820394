"""Samplers: IDDPM's ancestral chain with guidance and reference frames, and the fast solvers of diffusers."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from brickreel.diffusion.iddpm import IDDPM, halves

Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x [B, c, T, h, w], timesteps that the model is told [B], x_mask [B, T] or None) to its output [B, 2c, T, h, w],
or [B, c, T, h, w] of a model without `pred_sigma`."""


def guided(
    model: Callable[..., Tensor], y: Tensor, y_null: Tensor | None, scale: float, channels: int, **kwargs: Any
) -> Denoise:
    """Classifier-free guidance (Ho and Salimans 2022): u + scale (c - u) on the first `channels` channels of the noise.

    The other channels, the variances among them, are those of the prompted half: Open-Sora 1.1 guides three of four.
    `y_null` None asks for no guidance. Sizes in `kwargs` have B rows and are doubled here.

    Raises ValueError when there are fewer channels than `channels`.
    """

    def plain(x: Tensor, t: Tensor, x_mask: Tensor | None) -> Tensor:
        return model(x, t, y, x_mask=x_mask, **kwargs)

    def both(x: Tensor, t: Tensor, x_mask: Tensor | None) -> Tensor:
        if not 0 <= channels <= x.shape[1]:
            raise ValueError(f"guidance_channels must be 0 to {x.shape[1]}, not {channels}")
        twice = None if x_mask is None else torch.cat([x_mask, x_mask])
        output = model(torch.cat([x, x]), torch.cat([t, t]), both_y, x_mask=twice, **doubled)
        prompted, null = output.chunk(2)
        first, null = prompted[:, :channels], null[:, :channels]
        return torch.cat([null + scale * (first - null), prompted[:, channels:]], dim=1)

    if y_null is None:
        return plain
    both_y = torch.cat([y, y_null])
    doubled = {name: torch.cat([v, v]) if isinstance(v, Tensor) and name != "mask" else v for name, v in kwargs.items()}
    return both


def ancestral(
    denoise: Denoise,
    x: Tensor,
    process: IDDPM,
    draw: Callable[[], Tensor],
    edit_ratio_BT: Tensor | None = None,
    after_step: Callable[[], None] | None = None,
) -> Tensor:
    """IDDPM's ancestral sampling from noise to latents [B, c, T, h, w].

    Reference frames are given clean in `x` with an edit ratio r: they join when the chain reaches level int(r * steps),
    are noised to it, and are from then on denoised with the rest; before, the model is told that they are clean. A
    frame of ratio 1 starts from noise; one of ratio 0 gets a single update at the last step (as in the original).

    Args:
        denoise: the model, with guidance.
        x: noise; clean latents in the frames with an edit ratio below 1.
        process: the respaced process; its length is the number of steps.
        draw: the next noise, like x: one per step, two with reference frames.
        edit_ratio_BT: r per frame [B, T]; None: all 1.
        after_step: called after every step, to show progress.
    """
    join_BT = None if edit_ratio_BT is None else (edit_ratio_BT * len(process)).to(torch.int64)
    for index in reversed(range(len(process))):
        t = torch.full((x.shape[0],), index, device=x.device)
        x_mask, before = None, x
        if join_BT is not None:
            joining = (join_BT == index)[:, None, :, None, None]
            x = torch.where(joining, process.add_noise(x, t, draw()), x)
            x_mask = join_BT > index
        x = ancestral_step(denoise(x, process.told(t), x_mask), x, t, process, draw())
        if join_BT is not None:
            waiting = (join_BT < index)[:, None, :, None, None]
            x = torch.where(waiting, before, x)
        if after_step:
            after_step()
    return x


def ancestral_step(output: Tensor, x: Tensor, t: Tensor, process: IDDPM, noise: Tensor) -> Tensor:
    """One step of the chain: the posterior's mean and the learned variance times the noise; no noise at index 0."""
    predicted, variance = halves(output, x)
    mean = process.posterior_mean(process.predicted_x0(x, t, predicted), x, t)
    noisy = (t != 0).to(x.dtype).view(-1, *[1] * (x.dim() - 1))
    return mean + noisy * torch.exp(0.5 * process.log_variance(variance, t)) * noise


def solve(
    denoise: Denoise, x: Tensor, scheduler: Any, steps: int, after_step: Callable[[], None] | None = None
) -> Tensor:
    """Run a deterministic diffusers scheduler, such as DPM-Solver++ (Lu et al. 2022), for `steps` steps.

    It is given the noise alone; the variances have no place in it. Raises ValueError for fewer steps than one, or for
    as many as there are timesteps, of which it would take one twice.
    """
    most = scheduler.config.num_train_timesteps - 1
    if not 1 <= steps <= most:
        raise ValueError(f"the fast sampler takes 1 to {most} steps, not {steps}")
    scheduler.set_timesteps(steps, device=x.device)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        told = t.expand(x.shape[0]).to(x.device)
        output = denoise(scheduler.scale_model_input(x, t), told, None)
        x = scheduler.step(output[:, : x.shape[1]].float(), t, x).prev_sample
        if after_step:
            after_step()
    return x


def noise_like(x: Tensor, generators: list[torch.Generator]) -> Callable[[], Tensor]:
    """A source of noise of one sample's shape per generator: each sample's noise depends on its generator alone."""

    def draw() -> Tensor:
        parts = [
            torch.randn(x.shape[1:], generator=generator, device=generator.device, dtype=torch.float32)
            for generator in generators
        ]
        return torch.stack([part.to(x.device) for part in parts])

    return draw


def recorded(noises: Iterator[Tensor] | list[Tensor]) -> Callable[[], Tensor]:
    """A source of noise that was recorded, in its order."""
    stream = iter(noises)
    return lambda: next(stream)
