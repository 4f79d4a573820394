"""FLOPs of training on one sample: forward and backward pass, without recomputation, which is no work of the model."""

import math
from typing import Any, NamedTuple, Self

from torch import nn

from brickreel.models.stdit2.flops import forward_flops

PASSES = 3
"""Where all weights are trained, the backward pass costs two forward passes (Kaplan et al. 2020, section 2.1)."""


class Arithmetic(NamedTuple):
    """What a model's training costs, counted from shapes."""

    sizes: Any
    additions: tuple[int, int] | None = None
    """Of a LoRA run: FLOPs of the additions' forward pass per patch and per text token."""

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Of a transformer as it is trained; its weights need not be there."""
        patch = text = 0
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and (".lora_A." in name or ".lora_B." in name):
                flops = 2 * module.in_features * module.out_features
                if ".kv_linear." in name or name.startswith("y_embedder."):
                    text += flops
                elif name.startswith(("blocks.", "final_layer.")):
                    patch += flops
        return cls(model.config, (patch, text) if patch or text else None)

    def forward_flops(self, frames: int, rows: int, columns: int, text_tokens: int) -> float:
        """Of one sample with a latent of frames x rows x columns, without additions."""
        return forward_flops(self.sizes, frames, rows, columns, text_tokens)

    def training_flops(self, frames: int, rows: int, columns: int, text_tokens: int) -> float:
        """Of one sample, forward and backward.

        A product with frozen weights has one product in the backward pass, for its input; one with trained weights has
        two, and so have those inside attention, of which both sides depend on what is trained.
        """
        forward = self.forward_flops(frames, rows, columns, text_tokens)
        if self.additions is None:
            return PASSES * forward
        _, height, width = self.sizes.patch_size
        area = math.ceil(rows / height) * math.ceil(columns / width)
        patches = frames * area
        attention = self.sizes.depth * 4 * patches * self.sizes.hidden_size * (area + frames + text_tokens)
        added = patches * self.additions[0] + text_tokens * self.additions[1]
        return 2 * forward + attention + PASSES * added
