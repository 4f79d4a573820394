"""Rectified flow (Liu et al. 2022; Esser et al. 2024), the objective of Open-Sora 1.2, as an alternative to IDDPM.

Straight paths from data to noise: x_t = (1 - tau) x0 + tau noise with tau = t / 1000; the model predicts x0 - noise.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from brickreel.diffusion.iddpm import masked_mean

TIMESTEPS = 1000


class RectifiedFlow:
    """The path and the training loss, with the interface of IDDPM."""

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t at timesteps t [B], 0 (data) to 1000 (noise)."""
        share = (t.float() / TIMESTEPS).view(-1, *[1] * (x0.dim() - 1))
        return (1 - share) * x0 + share * noise

    def training_losses(
        self,
        model: Callable[..., Tensor],
        x0: Tensor,
        t: Tensor,
        noise: Tensor,
        model_kwargs: Mapping[str, Any] | None = None,
        x_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Squared error of the velocity; the model's variance half, where it has one, is not used.

        Shapes as in IDDPM.training_losses; t may be whole or continuous. "vb" is zero, so that both objectives log the
        same columns. Clean frames (x_mask False) are given at t = 0, which is exactly clean here.
        """
        x_t = self.add_noise(x0, t, noise)
        if x_mask is not None:
            x_t = torch.where(x_mask[:, None, :, None, None], x_t, x0.to(x_t.dtype))
        velocity = model(x_t, t, x_mask=x_mask, **(model_kwargs or {}))[:, : x0.shape[1]]
        mse = masked_mean((velocity - (x0 - noise)).square(), x_mask)
        return {"loss": mse, "mse": mse, "vb": torch.zeros_like(mse)}


def logit_normal(normal: float, ratio: float = 1.0) -> float:
    """The continuous timestep of a standard normal number, shifted by `ratio`: what training draws.

    As in Open-Sora 1.2: middle timesteps more often than the ends (Esser et al. 2024, section 3.1).
    """
    return TIMESTEPS / (1 + math.exp(-normal) / ratio)


def shifted(share: Tensor, ratio: float) -> Tensor:
    """r s / (1 + (r - 1) s): moves timesteps towards noise for r > 1 (Esser et al. 2024, eq. 23)."""
    return ratio * share / (1 + (ratio - 1) * share)


def resolution_shift(height: float, width: float, frames: int, scale: float = 1.0) -> float:
    """The ratio that Open-Sora 1.2 shifts by: by the area in units of 512 x 512 pixels and by the latent frames.

    Never towards data, which its formula does below that area: of a video of 64 x 64 pixels, training would hardly see
    the noise that sampling begins with.
    """
    latent_frames = 1 if frames == 1 else frames // 17 * 5
    return max(1.0, math.sqrt(height * width / 512**2) * math.sqrt(max(latent_frames, 1))) * scale


def euler(
    denoise: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    steps: int,
    shift: float = 1.0,
    draw: Callable[[], Tensor] | None = None,
    edit_ratio_BT: Tensor | None = None,
    after_step: Callable[[], None] | None = None,
) -> Tensor:
    """Sample by Euler steps from t = 1000 to 0; arguments as in sampling.ancestral.

    A reference frame of edit ratio r joins at the first t of at most 1000 r, noised to it with `draw`; a frame of ratio
    0 never does. Raises ValueError for fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"the sampler takes at least 1 step, not {steps}")
    times = shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float() * TIMESTEPS
    joined = None if edit_ratio_BT is None else edit_ratio_BT >= 1
    flow = RectifiedFlow()
    for now, after in itertools.pairwise(times):
        t = now.to(x.device).expand(x.shape[0])
        active = None
        if edit_ratio_BT is not None and joined is not None and draw is not None:
            active = edit_ratio_BT * TIMESTEPS >= now
            x = torch.where((active & ~joined)[:, None, :, None, None], flow.add_noise(x, t, draw()), x)
            joined = active | joined
        velocity = denoise(x, t, active)[:, : x.shape[1]]
        moved = x + velocity * ((now - after) / TIMESTEPS).to(x.device)
        x = moved if active is None else torch.where(active[:, None, :, None, None], moved, x)
        if after_step:
            after_step()
    return x
