"""The tiny transformer and its text encoder, trained together on latents of smooth moving shapes."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from brickreel import files
from brickreel.config import P2
from brickreel.diffusion.iddpm import IDDPM, TIMESTEPS
from brickreel.models.autoencoder import Autoencoder, sample_posterior
from brickreel.models.stdit2 import STDiT2
from brickreel.progress import Bar
from brickreel.training.showing import STILL_FPS
from brickreel.training.tiny import footage, text
from brickreel.training.tiny.autoencoder import to_tensor
from brickreel.training.tiny.resuming import Loss

Pool = dict[str, Tensor]
"""Encoded footage: mean and logvar [N, C, T, h, w] in fp16, not scaled; ids [N, L] and lengths [N]; fps [N]."""

TEXT_DROPOUT = 0.1
WEIGHTS = P2()  # without them a model of this size learns details, and shapes hardly at all
QUESTIONS_PER_SAMPLE = 10  # timesteps of the held-out loss, spread evenly over all


class Conditioned(nn.Module):
    """The text encoder and the transformer as one trained module."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.text_encoder = text.build(vocabulary)
        self.transformer = STDiT2.preset("tiny")

    def words(self, ids_NL: Tensor, lengths_N: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [N, 1, L, channels] and their mask [N, L], cut to the longest."""
        ids = ids_NL[:, : int(lengths_N.max())]
        mask = torch.arange(ids.shape[1]) < lengths_N[:, None]
        return self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, None], mask


def encoder_digest(autoencoder: Autoencoder) -> str:
    """Names the encoder's weights: latents are of use with these only. The decoder may change."""
    found = hashlib.sha256()
    for part in (autoencoder.vae.encoder, autoencoder.vae.quant_conv):
        for tensor in part.state_dict().values():
            found.update(tensor.numpy().tobytes())
    return found.hexdigest()[:8]


def encode(autoencoder: Autoencoder, tokenizer: Any, count: int, frames: int, seed: int, path: Path) -> Pool:
    """Draw, caption and encode clips of shapes, once: `path` keeps them. One frame each makes stills."""
    if path.is_file():
        return load_file(path)
    means, logvars, captions, rates = [], [], [], []
    with Bar(f"tiny footage of {frames} frames", count, "clips") as bar:
        for clip, caption in footage.captioned(count, frames, seed):
            mean, logvar = autoencoder.encode(to_tensor(clip.frames))
            means.append(mean.transpose(0, 1).half())
            logvars.append(logvar.transpose(0, 1).half())
            captions.append(caption)
            rates.append(clip.rate if frames > 1 else STILL_FPS)
            bar.advance()
    ids, lengths = text.tokenize(tokenizer, captions)
    pool = {
        "mean": torch.stack(means),
        "logvar": torch.stack(logvars),
        "ids": ids,
        "lengths": lengths,
        "fps": torch.tensor(rates),
    }
    with files.replacing(path) as temporary:
        save_file(pool, temporary)
    return pool


def loss_on(
    model: Conditioned, clips: Pool, stills: Pool, batch: tuple[int, int], scale: float, stills_until: int, seed: int
) -> Loss:
    """The loss of a step: IDDPM's, weighted, on stills alone until `stills_until`, then on clips and a few stills.

    Args:
        batch: clips per step; stills per step before clips come (an eighth of them afterwards).
        scale: the autoencoder's scaling factor.
    """
    process = IDDPM()

    def part(pool: Pool, count: int, rng: np.random.Generator) -> Tensor:
        chosen = torch.from_numpy(rng.integers(len(pool["fps"]), size=count))
        shape = (count, *pool["mean"].shape[1:])
        noises = torch.from_numpy(rng.standard_normal((2, *shape), dtype=np.float32))
        t = torch.from_numpy(rng.integers(TIMESTEPS, size=count))
        drop = torch.from_numpy(rng.random(count) < TEXT_DROPOUT)
        found = losses(process, model, pool, chosen, t, noises, scale, drop)
        return (found * process.p2_weights(t, WEIGHTS.k, WEIGHTS.gamma)).mean()

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, step])
        if step <= stills_until:
            value = part(stills, batch[1], rng)
            return value, {"loss_stills": value.item()}
        moving, still = part(clips, batch[0], rng), part(stills, max(1, batch[1] // 8), rng)
        return moving + 0.25 * still, {"loss_clips": moving.item(), "loss_stills": still.item()}

    return loss


def losses(
    process: IDDPM,
    model: Conditioned,
    pool: Pool,
    chosen: Tensor,
    t: Tensor,
    noises: Tensor,
    scale: float,
    drop: Tensor | None = None,
    words_of: Tensor | None = None,
) -> Tensor:
    """IDDPM's loss [B] of the chosen samples at timesteps t [B]. noises [2, B, ...]: the posterior's, the process's.

    `words_of`: take the captions of these samples instead of their own.
    """
    told = chosen if words_of is None else words_of
    x0 = sample_posterior(pool["mean"][chosen].float(), pool["logvar"][chosen].float(), noises[0]) * scale
    y, mask = model.words(pool["ids"][told], pool["lengths"][told])
    count, _, frames, rows, columns = x0.shape
    sizes = {"num_frames": frames, "height": rows * 8, "width": columns * 8, "ar": rows / columns}
    kwargs: dict[str, Any] = {name: torch.full((count,), float(value)) for name, value in sizes.items()}
    kwargs |= {"y": y, "mask": mask, "fps": pool["fps"][chosen], "drop_text": drop}
    return process.training_losses(model.transformer, x0, t, noises[1], kwargs)["loss"]


@torch.no_grad()
def heldout(model: Conditioned, pool: Pool, scale: float, seed: int, swapped: bool = False) -> float:
    """The loss on unseen footage at frozen timesteps and noise; `swapped` tells every sample another one's caption."""
    model.eval()
    process, count = IDDPM(), len(pool["fps"])
    rng = np.random.default_rng(seed)
    samples = torch.arange(count)
    found = []
    for number in range(QUESTIONS_PER_SAMPLE):
        low, high = (TIMESTEPS * place // QUESTIONS_PER_SAMPLE for place in (number, number + 1))
        t = torch.from_numpy(rng.integers(low, high, size=count))
        noises = torch.from_numpy(rng.standard_normal((2, *pool["mean"].shape), dtype=np.float32))
        told = samples.roll(1) if swapped else None
        found.append(losses(process, model, pool, samples, t, noises, scale, words_of=told).mean().item())
    model.train()
    return round(math.fsum(found) / len(found), 5)


def save(model: Conditioned, folder: Path) -> None:
    """Write both parts in half precision, half the size; loading gives fp32 again."""
    half = STDiT2.preset("tiny").half()
    half.load_state_dict(model.transformer.state_dict())
    half.save_pretrained(folder / "transformer")
    text.save(model.text_encoder, folder / "text_encoder")


def summary(model: Conditioned) -> Mapping[str, int]:
    """Parameters per part."""
    return {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
