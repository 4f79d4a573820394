"""Arithmetic of one forward pass, counted from the shapes: the matrix products, two operations per multiply-add."""

import math
from collections.abc import Mapping
from typing import Any

from brickreel.models.stdit2.embeddings import FREQUENCIES


def forward_flops(
    settings: Mapping[str, Any] | Any, frames: int, latent_height: int, latent_width: int, text_tokens: int
) -> float:
    """FLOPs of one sample's forward pass without frame masks; a training step takes three times as many (four with
    full activation checkpointing).

    With N = T S patch tokens, C channels and L text tokens, a block takes per sample
        self-attention, twice:  8 N C^2 in products, and 4 N S C within frames, 4 N T C across time in scores and sums
        cross-attention:        4 N C^2 + 4 L C^2, and 4 N L C
        MLP:                    16 N C^2
    and around the blocks there are the patches, the text's projection, the conditioning and the last layer. Norms,
    activations and modulation are not counted, as in torch's own counter.

    Args:
        settings: anything with the model's sizes as keys or attributes: a config, a preset.
        frames: latent frames T. latent_height, latent_width: the latent's size; odd ones are padded.
        text_tokens: L, padding included where the text is padded.
    """
    C, depth = int(_get(settings, "hidden_size")), int(_get(settings, "depth"))
    _, ph, pw = _get(settings, "patch_size", (1, 2, 2))
    channels = int(_get(settings, "in_channels", 4))
    outputs = channels * (2 if _get(settings, "pred_sigma", True) else 1)
    T, S, L = frames, math.ceil(latent_height / ph) * math.ceil(latent_width / pw), text_tokens
    N = T * S
    self_attention = 2 * 8 * N * C**2 + 4 * N * S * C + 4 * N * T * C
    cross_attention = 4 * N * C**2 + 4 * L * C**2 + 4 * N * L * C
    blocks = depth * (self_attention + cross_attention + 16 * N * C**2)
    patches = 2 * N * ph * pw * (channels + outputs) * C
    text = 2 * L * (int(_get(settings, "caption_channels")) * C + C**2)
    third = C // 3
    # Three scalars at full width (time, frames, rate), three at a third of it (height, width, aspect ratio).
    conditioning = 3 * 2 * (FREQUENCIES * C + C**2) + 3 * 2 * (FREQUENCIES * third + third**2) + 2 * 9 * C**2
    return float(blocks + patches + text + conditioning)


def _get(settings: Mapping[str, Any] | Any, name: str, default: Any = None) -> Any:
    value = settings.get(name, default) if isinstance(settings, Mapping) else getattr(settings, name, default)
    if value is None:
        raise ValueError(f"the model's settings have no {name}")
    return value
