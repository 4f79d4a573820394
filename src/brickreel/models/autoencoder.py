"""The image autoencoder, used frame by frame: pixels to the latents' mean and log-variance, and back."""

from typing import Any

import torch
from torch import Tensor


class Autoencoder:
    """A diffusers AutoencoderKL with bounded memory: at most `frames_per_batch` frames go through it at once.

    What the transformer sees is (mean + exp(logvar / 2) * noise) * scaling_factor.
    """

    def __init__(self, vae: Any, frames_per_batch: int = 16) -> None:
        if frames_per_batch < 1:
            raise ValueError(f"frames_per_batch must be at least 1, not {frames_per_batch}")
        self.vae, self.frames_per_batch = vae, frames_per_batch
        self.scaling_factor = float(vae.config.scaling_factor)
        self.channels = int(vae.config.latent_channels)
        self.downsample = 2 ** (len(vae.config.block_out_channels) - 1)
        """Pixels per latent row and column; odd rests are cut off."""

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Autoencoder":
        """Move and cast the weights; returns itself."""
        self.vae.to(device=device or self.vae.device, dtype=dtype or self.vae.dtype)
        return self

    @torch.no_grad()
    def encode(self, pixels_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels in [-1, 1] to the posterior's mean and log-variance, each [N, channels, H/8, W/8] in fp32.

        Raises ValueError for another shape, or frames smaller than one latent pixel.
        """
        if pixels_N3HW.dim() != 4 or pixels_N3HW.shape[1] != 3 or min(pixels_N3HW.shape[2:]) < self.downsample:
            raise ValueError(
                f"pixels must be [N, 3, H, W] with sides of at least {self.downsample}, not {list(pixels_N3HW.shape)}"
            )
        means, logvars = [], []
        for part in pixels_N3HW.split(self.frames_per_batch):
            posterior = self.vae.encode(part.to(self.vae.device, self.vae.dtype)).latent_dist
            means.append(posterior.mean.float())
            logvars.append(posterior.logvar.float())
        return torch.cat(means), torch.cat(logvars)

    @torch.no_grad()
    def decode(self, latents_NChw: Tensor) -> Tensor:
        """Latents, already divided by the scaling factor, to pixels [N, 3, H, W] in about [-1, 1], fp32."""
        if latents_NChw.dim() != 4 or latents_NChw.shape[1] != self.channels:
            raise ValueError(f"latents must be [N, {self.channels}, h, w], not {list(latents_NChw.shape)}")
        parts = latents_NChw.split(self.frames_per_batch)
        return torch.cat([self.vae.decode(part.to(self.vae.device, self.vae.dtype)).sample.float() for part in parts])


def sample_posterior(mean: Tensor, logvar: Tensor, noise: Tensor | None) -> Tensor:
    """A latent drawn from the posterior with this noise; its mode when the noise is None."""
    return mean if noise is None else mean + torch.exp(0.5 * logvar) * noise
