"""The text encoder: prompts to T5 embeddings without padding."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class TextEncoder:
    """A T5 encoder with its tokenizer.

    Prompts go through one by one: an embedding then never depends on what else is in the batch, and text is a small
    part of the work, since it is encoded once.
    """

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self.tokenizer, self.model = tokenizer, model
        self.channels = int(model.config.d_model)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "TextEncoder":
        """Move and cast the weights; returns itself."""
        self.model.to(device=device or self.model.device, dtype=dtype or self.model.dtype)
        return self

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], max_tokens: int = 200) -> list[Tensor]:
        """Embeddings [tokens, channels] of each prompt, of at most `max_tokens` with the end mark; never padded.

        Raises ValueError for fewer than one token.
        """
        return [encode_prompt(self.tokenizer, self.model, prompt, max_tokens) for prompt in prompts]


def encode_prompt(
    tokenizer: Any, model: Any, prompt: str, max_tokens: int, device: torch.device | None = None
) -> Tensor:
    """One prompt's embedding [tokens, channels] in the model's precision; an empty prompt is the end mark alone.

    `device` is where the model computes, if that is not where its weights are now.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    ids = tokenizer(prompt, max_length=max_tokens, truncation=True, add_special_tokens=True).input_ids
    tokens = torch.tensor([ids or [tokenizer.eos_token_id]], device=device or model.device)
    return model(input_ids=tokens).last_hidden_state[0]
