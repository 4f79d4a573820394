"""Small models with random weights, saved in the layout of a base model: made in well under a second."""

from pathlib import Path

import sentencepiece
import torch
from diffusers import AutoencoderKL
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from brickreel.models.stdit2 import STDiT2

WORDS = "a the red blue yellow brick car house man walks drives turns over bridge left right sea sky tree slowly fast"
TRANSFORMER = {"depth": 2, "hidden_size": 48, "num_heads": 2, "caption_channels": 16, "model_max_length": 24}


def save_base(folder: Path, seed: int = 0) -> Path:
    """Save transformer/, autoencoder/, text_encoder/ and tokenizer/ under `folder`, and return it."""
    torch.manual_seed(seed)
    save_transformer(folder / "transformer")
    save_autoencoder(folder / "autoencoder")
    save_text_encoder(folder)
    return folder


def base_settings(folder: Path) -> dict:
    """The `base` section of a configuration that points at such a folder."""
    return {part: {"path": str(folder / part)} for part in ("transformer", "autoencoder", "text_encoder")}


def transformer(**overrides) -> STDiT2:
    """A small STDiT2 whose zero-initialised layers are filled, so that every part shows in the output."""
    model = STDiT2(**{**TRANSFORMER, **overrides})
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def save_transformer(folder: Path) -> None:
    transformer().save_pretrained(folder)


def save_autoencoder(folder: Path) -> None:
    """An autoencoder that reduces by 8 to 4 channels."""
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        scaling_factor=0.5,
    ).save_pretrained(folder)


def save_text_encoder(folder: Path) -> None:
    """A one-layer T5 encoder and its tokenizer."""
    (folder / "tokenizer").mkdir(parents=True)
    model = folder / "tokenizer" / "spiece.model"
    with model.open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([WORDS] * 20),
            model_writer=stream,
            vocab_size=60,
            model_type="unigram",
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer")
    tokenizer.save_pretrained(folder / "tokenizer")
    settings = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        is_encoder_decoder=False,
        use_cache=False,
    )
    T5EncoderModel(settings).save_pretrained(folder / "text_encoder")
