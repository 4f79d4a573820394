"""The tiny decoder, trained on against a critic: it paints the studs that a plain error averages away.

The encoder is frozen, so that latents, and with them every transformer, stay valid. The critic judges patches (Isola et
al. 2017), as that of Stable Diffusion's autoencoder does, and is thrown away afterwards. It sees luma only, and nothing
beyond the border: or else it is fooled with grains of colour in the corners.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from brickreel.training.tiny.autoencoder import averages_apart, to_tensor
from brickreel.training.tiny.resuming import Loss

WEIGHT = 0.03  # of the critic's word, beside an absolute error of about as much
LUMA = (0.299, 0.587, 0.114)


class Contest(nn.Module):
    """The autoencoder, whose decoder learns, and its critic."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        for part in (vae.encoder, vae.quant_conv):
            part.requires_grad_(False)
        self.critic = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, 2),
            nn.GroupNorm(8, 64),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 96, 3),
            nn.GroupNorm(8, 96),
            nn.LeakyReLU(0.2),
            nn.Conv2d(96, 1, 3),
        )


def loss_on(contest: Contest, pictures: NDArray[np.uint8], batch: int, seed: int) -> Loss:
    """The loss of a step on pictures [N, side, side, 3], of both sides at once: neither's gradient reaches the other.

    Its products are computed in bf16.
    """

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, step])
        x = to_tensor(pictures[rng.integers(len(pictures), size=batch)])
        x = x.flip(3) if step % 2 else x
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                posterior = contest.vae.encode(x).latent_dist
                noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, dtype=np.float32))
                latent = posterior.mean + posterior.std * noise
            y = contest.vae.decode(latent).sample.float()
            unmoved = {name: weight.detach() for name, weight in contest.critic.named_parameters()}
            fooled = functional_call(contest.critic, unmoved, luma(y)).float()
            made, drawn = contest.critic(luma(y.detach())).float(), contest.critic(luma(x)).float()
        absolute = (y - x).abs().mean()
        decoder = absolute + averages_apart(y, x) + WEIGHT * F.softplus(-fooled).mean()
        critic = F.softplus(made).mean() + F.softplus(-drawn).mean()
        return decoder + critic, {"absolute": absolute.item(), "critic": critic.item()}

    return loss


def luma(x: Tensor) -> Tensor:
    """[B, 3, H, W] to [B, 1, H, W]."""
    return (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
