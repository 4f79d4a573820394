"""`brickreel convert`: Open-Sora 1.1's checkpoints, as its training wrote or its authors published them, to a folder.

The result is what the transformer of a base model is: config.json and one safetensors file.
"""

import logging
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import click
import torch

from brickreel.models import load
from brickreel.models.stdit2.model import STDiT2
from brickreel.models.stdit2.weights import State, fit, read_checkpoint
from brickreel.running import guarded, set_up_logging

logger = logging.getLogger("brickreel")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    prefer_ema: bool = True,
    text_tokens: int | None = None,
    input_sq_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> STDiT2:
    """Read a checkpoint, compare every name and shape, and write the folder.

    What the weights do not tell is as in config.json beside them, where there is one.

    Args:
        source: a safetensors file, a file that torch saved, or a folder of an Open-Sora checkpoint.
        out: the folder to write.
        prefer_ema: take the moving average where a checkpoint has both. Which was taken is logged.
        text_tokens: longest prompt; the null text embedding is cut, or its last row repeated. Default: as stored.
        input_sq_size: pixels at which positions have steps of one. Default: as in config.json, else 512.
        dtype: precision of what is written.

    Raises:
        FileNotFoundError: when there are no weights.
        ValueError: for damaged or unsafe files, weights that config.json does not describe, any missing or unexpected
            name, and what is not finite: nothing is then written.
    """
    state = read_checkpoint(source, prefer_ema)
    settings = _settings(state, Path(source))
    chosen = {"model_max_length": text_tokens, "input_sq_size": input_sq_size}
    settings |= {name: value for name, value in chosen.items() if value}
    with torch.device("meta"):
        model = load.built(settings, source)
    model.load_state_dict(fit(state, model, str(source)), strict=True, assign=True)
    model = torch.nn.Module.to(model, dtype=dtype).eval()  # type: ignore[assignment]
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{source} has values that are not finite in {dtype}: {', '.join(broken)}")
    _save(model, Path(out))
    return model


def _save(model: STDiT2, out: Path) -> None:
    """Write beside, then put in place: weights first, config.json last, without which it is no transformer."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=out) as fresh:
        model.save_pretrained(fresh, max_shard_size="100GB")
        for path in sorted(Path(fresh).iterdir(), key=lambda path: path.suffix == ".json"):
            os.replace(path, out / path.name)


def _settings(state: State, source: Path) -> dict[str, Any]:
    """What config.json beside the weights says, and what they tell where it says nothing.

    The longest prompt is as the weights have it: config.json may ask for fewer tokens than are stored.
    """
    read, folder = settings_of(state, str(source)), source if source.is_dir() else source.parent
    if not (folder / "config.json").is_file():
        return read
    told = load.settings(folder) | {"model_max_length": read["model_max_length"]}
    apart = [f"{name} {told[name]} and not {read[name]}" for name in read if told.get(name, read[name]) != read[name]]
    if apart:
        raise ValueError(
            f"{folder / 'config.json'} says {', '.join(apart)}, as the weights of {source} have it: weights are"
            " missing, or it is another model's and must not lie beside them"
        )
    return read | told


def settings_of(state: State, source: str) -> dict[str, Any]:
    """The constructor's sizes, read off the shapes of the weights.

    Raises ValueError that names the first weight without which it is not an STDiT2.
    """
    blocks = {
        int(name.split(".")[1]) for name in state if name.startswith("blocks.") and name.split(".")[1].isdecimal()
    }
    hidden, channels, *patch = _shape(state, "x_embedder.proj.weight", 5, source)
    last = _shape(state, "final_layer.linear.weight", 2, source)[0]
    tokens, caption_channels = _shape(state, "y_embedder.y_embedding", 2, source)
    norm = "blocks.0.attn.q_norm.weight"
    if norm not in state and "rope.freqs" not in state:
        raise ValueError(f"{source} has neither q_norm nor rope.freqs: the number of heads cannot be told")
    head = _shape(state, norm, 1, source)[0] if norm in state else 2 * _shape(state, "rope.freqs", 1, source)[0]
    if hidden % head:
        raise ValueError(f"{source} is not an STDiT2: heads of {head} channels do not make up {hidden}")
    return {
        "depth": len(blocks),
        "hidden_size": hidden,
        "num_heads": hidden // head,
        "caption_channels": caption_channels,
        "model_max_length": tokens,
        "in_channels": channels,
        "patch_size": patch,
        "qk_norm": norm in state,
        "pred_sigma": last == 2 * channels * math.prod(patch),
    }


def _shape(state: State, name: str, dimensions: int, source: str) -> list[int]:
    if name not in state:
        raise ValueError(f"{source} is not an STDiT2 of Open-Sora 1.1: it has no {name}, but {len(state)} other names")
    shape = list(state[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"{source} is not an STDiT2: {name} is {shape}, but should have {dimensions} sizes, none 0")
    return shape


@click.command(name="convert")
@click.argument("source", type=click.Path(exists=True))
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--ema/--raw", default=True, show_default=True, help="Which weights of a checkpoint that has both.")
@click.option("--text-tokens", type=click.IntRange(min=1), help="Longest prompt in tokens. Default: as stored.")
@click.option("--input-sq-size", type=click.IntRange(min=1), help="Default: from config.json beside SOURCE, else 512.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(
    source: str, out: str, ema: bool, text_tokens: int | None, input_sq_size: int | None, dtype: str, debug: bool
) -> None:
    """Convert Open-Sora 1.1 weights to a folder for `base.transformer.path`.

    SOURCE is a .safetensors file, a .pt file, or a checkpoint's folder (ema.pt, model/ with its index, or
    safetensors). Every name and shape must fit: a checkpoint is never loaded in part. No code in it is run.

    \b
    Example:
      brickreel convert outputs/000-STDiT2/epoch0-global_step2000 models/mine
      # config.yaml:  base: {transformer: {path: models/mine}}
    """
    set_up_logging()

    def call() -> None:
        model = convert(source, out, ema, text_tokens, input_sq_size, DTYPES[dtype])
        count = sum(tensor.numel() for tensor in model.state_dict().values())
        logger.info("convert: %s: %d tensors, %s numbers, %s", out, len(model.state_dict()), f"{count:,}", dtype)

    guarded("convert", debug, call)
