"""From a batch of latents to one loss per sample, every random number drawn from the sample's showing."""

import random
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from brickreel.config import Run
from brickreel.diffusion import masks
from brickreel.diffusion.iddpm import IDDPM
from brickreel.diffusion.rectified_flow import RectifiedFlow, logit_normal, resolution_shift
from brickreel.training.dataset import Batch

TIMESTEPS = 1000


class Diffusion(Protocol):
    """IDDPM or rectified flow."""

    def training_losses(
        self,
        model: Any,
        x0: Tensor,
        t: Tensor,
        noise: Tensor,
        model_kwargs: Mapping[str, Any],
        x_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss per sample."""


def diffusion(run: Run) -> Diffusion:
    """The objective that the run names."""
    return IDDPM() if run.objective == "iddpm" else RectifiedFlow()


class Draw(NamedTuple):
    """What is random about a batch. t [B]; noise like x0; x_mask bool [B, T] or None; drop_text bool [B]."""

    x0: Tensor
    t: Tensor
    noise: Tensor
    x_mask: Tensor | None
    drop_text: Tensor


def draw(batch: Batch, run: Run, device: torch.device) -> Draw:
    """Training's draws: latent from the posterior, noise, timestep, clean frames and text dropout."""
    drops, frame_masks = [], []
    for showing in batch.showings:
        drops.append(bool(showing.generator("text").random() < run.text_dropout))
        if run.mask_ratios:
            chance = random.Random(int(showing.generator("mask").integers(2**63)))  # noqa: S311  (not for secrets)
            frame_masks.append(masks.draw(run.mask_ratios, batch.frames, chance))
    return Draw(
        latents(batch, device),
        timesteps(batch, run).to(device),
        noise(batch, device),
        torch.stack(frame_masks).to(device) if frame_masks else None,
        torch.tensor(drops, device=device),
    )


def timesteps(batch: Batch, run: Run) -> Tensor:
    """Each showing's own timestep [B]: whole and uniform for IDDPM, continuous and logit-normal for rectified flow."""
    chances = [showing.generator("timestep") for showing in batch.showings]
    if run.objective == "iddpm":
        return torch.tensor([int(chance.integers(TIMESTEPS)) for chance in chances])
    ratio = resolution_shift(batch.height, batch.width, batch.frames)
    return torch.tensor([logit_normal(chance.standard_normal(), ratio) for chance in chances])


def latents(batch: Batch, device: torch.device) -> Tensor:
    """A fresh sample of each posterior, scaled as the transformer sees it, fp32 [B, C, T, h, w]."""
    shape = tuple(batch.mean.shape[1:])
    fresh = torch.stack([showing.normal("posterior", shape, device) for showing in batch.showings])
    mean, logvar = batch.mean.to(device, non_blocking=True).float(), batch.logvar.to(device, non_blocking=True).float()
    return (mean + (0.5 * logvar).exp() * fresh) * batch.scaling_factor


def noise(batch: Batch, device: torch.device) -> Tensor:
    """Each showing's own noise, fp32 [B, C, T, h, w]."""
    shape = tuple(batch.mean.shape[1:])
    return torch.stack([showing.normal("noise", shape, device) for showing in batch.showings])


def losses(kind: Diffusion, model: nn.Module, batch: Batch, drawn: Draw, autocast: torch.dtype | None = None) -> Tensor:
    """Loss per sample, fp32 [B]. `autocast` is the precision of the products, None for fp32."""
    device, count = drawn.x0.device, len(batch.ids)
    kwargs = {
        "y": batch.text.to(device, torch.float32 if autocast is None else autocast, non_blocking=True),
        "mask": batch.lengths,
        "num_frames": torch.full((count,), float(batch.frames), device=device),
        "height": torch.full((count,), float(batch.height), device=device),
        "width": torch.full((count,), float(batch.width), device=device),
        "ar": torch.full((count,), batch.height / batch.width, device=device),
        "fps": torch.tensor(batch.fps, dtype=torch.float32, device=device),
        "drop_text": drawn.drop_text,
    }
    with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
        found = kind.training_losses(model, drawn.x0, drawn.t, drawn.noise, kwargs, x_mask=drawn.x_mask)
    return found["loss"].float()


def weights(kind: Diffusion, run: Run, t: Tensor) -> Tensor | float:
    """How much training counts the losses at timesteps t [B]. The held-out loss is never weighted."""
    if run.p2 is None:
        return 1.0
    assert isinstance(kind, IDDPM), "the configuration refuses it for other objectives"
    return kind.p2_weights(t, run.p2.k, run.p2.gamma)
