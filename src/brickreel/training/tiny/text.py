"""The tiny text encoder: T5's tokenizer and encoder at a size that learns captions together with the transformer."""

import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from brickreel.captions import embedded
from brickreel.training.tiny import footage

CHANNELS = 64
CHARACTERS = string.ascii_letters + string.digits + ".,;:!?'-"
WORD, LETTER = -1.0, -10.0  # log-probabilities: a known word always wins over its letters
TOKENS = 64
"""Most tokens of a prompt."""


def save_tokenizer(folder: Path, words: Iterable[str]) -> Any:
    """Save T5's tokenizer with a piece per word, and single characters for all other words; load it again."""
    pieces = [(f"\u2581{word}", WORD) for word in sorted(set(words))]
    pieces += [(character, LETTER) for character in f"\u2581{CHARACTERS}"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    T5Tokenizer(vocab=special + pieces, extra_ids=0).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def vocabulary(captions: Iterable[str]) -> list[str]:
    """The words of these captions and all that a measured caption may hold, as they are and in small letters."""
    words = {word for caption in captions for word in caption.replace(".", " ").split()}
    words |= {word for word in embedded.vocabulary() if word.isalpha()}
    return sorted(words | {word.lower() for word in words})


def build(vocabulary: int) -> Any:
    """A fresh T5 encoder of version 1.1's kind: 2 layers of 64 channels."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=CHANNELS,
            d_kv=32,
            d_ff=160,
            num_layers=2,
            num_heads=2,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def tokenize(tokenizer: Any, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids, int64 [N, L], padded, and their number [N]."""
    found = tokenizer(list(captions), max_length=TOKENS, truncation=True, padding="max_length", return_tensors="pt")
    return found.input_ids, found.attention_mask.sum(1)


def sample_captions(count: int, seed: int) -> list[str]:
    """Captions to train a tokenizer on."""
    return [text for _, text in footage.captioned(count, 4, seed)]


def save(model: Any, folder: Path) -> None:
    """Write in half precision, half the size; loading gives fp32 again."""
    half = build(model.config.vocab_size)
    half.load_state_dict(model.state_dict())
    half.to(torch.float16).save_pretrained(folder)
