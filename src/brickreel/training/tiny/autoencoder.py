"""The tiny autoencoder: a small `AutoencoderKL`, eight times down to eight channels, trained on drawn stills."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from brickreel.training.tiny import footage
from brickreel.training.tiny.resuming import Loss

SIZES = (16, 32, 64, 64)
CHANNELS = 8  # of the latent: four, as in SD-VAE, are too few for studs at 64 pixels
KL_WEIGHT = 2e-4  # per latent element: keeps latents near a unit Gaussian without costing visible detail
EDGE_WEIGHT = 1.0  # differences of neighbouring pixels, which a plain error blurs


def build() -> Any:
    """A fresh `AutoencoderKL`, 0.94M parameters (diffusers' own classes are not typed)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=SIZES,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=footage.SIDE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def loss_on(model: Any, pictures: NDArray[np.uint8], batch: int, seed: int) -> Loss:
    """The loss of a step on pictures [N, side, side, 3]; its products are computed in bf16."""

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, step])
        x = to_tensor(pictures[rng.integers(len(pictures), size=batch)])
        x = x.flip(3) if step % 2 else x
        noise = torch.from_numpy(
            rng.standard_normal((batch, CHANNELS, x.shape[2] // 8, x.shape[3] // 8), dtype=np.float32)
        )
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(x).latent_dist
            y = model.decode(posterior.mean + posterior.std * noise).sample
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        distance, figures = _distance(y.float(), x)
        return distance + KL_WEIGHT * kl, {**figures, "kl": kl.item()}

    return loss


def _distance(y: Tensor, x: Tensor) -> tuple[Tensor, dict[str, float]]:
    absolute, square = (y - x).abs().mean(), (y - x).square().mean()
    edges = sum((y.diff(dim=axis) - x.diff(dim=axis)).abs().mean() for axis in (2, 3))
    loss = absolute + 2 * square + EDGE_WEIGHT * edges + averages_apart(y, x)
    return loss, {"absolute": absolute.item(), "square": square.item()}


def averages_apart(y: Tensor, x: Tensor) -> Tensor:
    """Absolute difference of means over 4 x 4 pixels: colours that are right, whatever the details."""
    return (F.avg_pool2d(y, 4) - F.avg_pool2d(x, 4)).abs().mean()


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """[..., H, W, 3] bytes to [..., 3, H, W] in -1 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).movedim(-1, -3).float() / 127.5 - 1


@torch.no_grad()
def set_scaling_factor(model: Any, pictures: NDArray[np.uint8]) -> None:
    """Set the factor that gives the latents of these pictures unit deviation."""
    latents = model.eval().encode(to_tensor(pictures)).latent_dist.sample(torch.Generator().manual_seed(0))
    model.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))


@torch.no_grad()
def figures_on(model: Any, pictures: NDArray[np.uint8]) -> dict[str, float]:
    """Figures on pictures that training has not seen, bricks and shapes in turn."""
    x = to_tensor(pictures)
    psnr = psnr_db(model.eval().decode(model.encode(x).latent_dist.mean).sample, x)
    return {
        "scaling_factor": model.config["scaling_factor"],
        "psnr_bricks_db": round(float(psnr[::2].mean()), 2),
        "psnr_shapes_db": round(float(psnr[1::2].mean()), 2),
    }


def psnr_db(y: Tensor, x: Tensor) -> Tensor:
    """Peak signal to noise ratio of each picture [N, 3, H, W], whose values lie in -1 to 1: [N]."""
    return -10 * ((y.clamp(-1, 1) - x).square().mean(dim=(1, 2, 3)) / 4).log10()


def save(model: Any, folder: Path) -> None:
    """Write in half precision, half the size; loading gives fp32 again."""
    half = build().half()
    half.load_state_dict(model.state_dict())
    half.register_to_config(scaling_factor=model.config["scaling_factor"])
    half.save_pretrained(folder)
