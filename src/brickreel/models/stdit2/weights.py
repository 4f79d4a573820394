"""Reading STDiT2's weights: safetensors of any layout, and Open-Sora's own checkpoints; strictly, or not at all."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from brickreel.models.stdit2.embeddings import RotaryEmbedding

logger = logging.getLogger("brickreel")

State = dict[str, Tensor]

SAFE_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
EMA_NAME = "ema.pt"
PICKLE_NAMES = ("model.pt", "pytorch_model.bin", "model_ckpt.pt")
# Wrappers under which training codes store the weights; the moving average is under EMA.
EMA = "ema"
ENVELOPES = ("state_dict", "model", "module")
# What was found, by whether it is a moving average and whether one was asked for.
TAKEN = {
    (True, True): "the moving average",
    (True, False): "the moving average, for there are no raw weights",
    (False, True): "raw weights, for nothing there is called a moving average",
    (False, False): "raw weights",
}
UNSAFE = "holds more than weights, or is damaged, and is not loaded, since that would run code from it"
# Names that other tools add: computed, never trained.
COMPUTED = ("pos_embed.inv_freq", "pos_embed", "pos_embed_temporal")


def read_safetensors(path: str | os.PathLike[str]) -> State:
    """Weights of a `.safetensors` file, or of a folder that holds one, in one piece or sharded with an index.

    Raises FileNotFoundError when the folder has none, ValueError when a file is damaged.
    """
    path = Path(path)
    if path.is_file():
        return _load_safe(path)
    for name in SAFE_NAMES:
        if (path / name).is_file():
            return _load_safe(path / name)
        index = path / f"{name}.index.json"
        if index.is_file():
            return _merge([_load_safe(path / part) for part in _present(index)], index)
    raise FileNotFoundError(
        f"{path} has no safetensors weights ({' or '.join(SAFE_NAMES)}); `brickreel convert` makes them from an"
        " Open-Sora checkpoint"
    )


def read_checkpoint(path: str | os.PathLike[str], prefer_ema: bool = True) -> State:
    """Weights of anything that holds STDiT2: safetensors, a `.pt` file, or a folder of an Open-Sora checkpoint.

    A folder is searched for `ema.pt` (with `prefer_ema`), then for safetensors, then for `model/` with ColossalAI's
    sharded index. Which file and which weights were taken is logged. Pickled files are read with torch's restricted
    loader, which runs no code.

    Raises FileNotFoundError, or ValueError for a damaged or unsafe file.
    """
    file = _find(Path(path), prefer_ema)
    if file.name.endswith(".index.json"):
        state, ema = _merge([_read(file.parent / part, prefer_ema)[0] for part in _present(file)], file), False
    else:
        state, ema = _read(file, prefer_ema)
    logger.info("read %s: %s", file, TAKEN[ema, prefer_ema])
    return state


def _find(path: Path, prefer_ema: bool) -> Path:
    """The file to read: weights, or the index of their shards."""
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"there are no weights at {path}")
    averages = [path / EMA_NAME, path / "model" / EMA_NAME]
    places = [*averages] if prefer_ema else []
    places += [path / f"{name}{suffix}" for name in SAFE_NAMES for suffix in ("", ".index.json")]
    for folder in (path / "model", path):
        places += [*sorted(folder.glob("*.index.json")), *(folder / name for name in (*PICKLE_NAMES, *SAFE_NAMES))]
    for place in (*places, *averages):
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"{path} holds neither safetensors nor an Open-Sora checkpoint (ema.pt, model/*.index.json, model.pt)"
    )


def _read(file: Path, prefer_ema: bool) -> tuple[State, bool]:
    """Weights of one file, and whether they are a moving average."""
    return (_load_safe(file), False) if file.suffix == ".safetensors" else read_pickled(file, prefer_ema)


def read_pickled(path: Path, prefer_ema: bool = True) -> tuple[State, bool]:
    """Weights of a file that torch saved, and whether they are a moving average: taken where it has both if preferred.

    No code in it is ever run: a file that needs that is refused with a ValueError.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(f"{path} {UNSAFE}") from error
    except Exception as error:  # what is no pickle leads the unpickler anywhere
        raise ValueError(f"{path} is damaged or truncated: {_first_line(error)}") from error
    ema = path.name == EMA_NAME
    for envelope in (EMA, *ENVELOPES) if prefer_ema else (*ENVELOPES, EMA):
        if isinstance(value, Mapping) and isinstance(value.get(envelope), Mapping):
            value, ema = value[envelope], ema or envelope == EMA
    if not isinstance(value, Mapping) or not value or not all(isinstance(v, Tensor) for v in value.values()):
        raise ValueError(f"{path} does not hold a model's weights by name")
    return {str(name).removeprefix("module."): tensor for name, tensor in value.items()}, ema


def fit(state: State, model: torch.nn.Module, source: str) -> State:
    """Bring weights into the model's shapes as Open-Sora does, and compare every name and shape.

    The null text embedding is cut, or its last row repeated, to the model's length; `rope.freqs` may be missing; names
    that other tools compute are left out. The model may be on the meta device.

    Raises ValueError that lists every missing, unexpected and misshapen name, and what is no dense tensor of real
    numbers: nothing is ever loaded in part.
    """
    wanted = model.state_dict()
    state = {name: tensor for name, tensor in state.items() if name not in COMPUTED}
    name = "y_embedder.y_embedding"
    if name in state and name in wanted and _dense(state[name]) and state[name].dim() == 2 and state[name].numel():
        state[name] = resize_null_text(state[name], wanted[name].shape[0])
    if "rope.freqs" in wanted and "rope.freqs" not in state:
        state["rope.freqs"] = RotaryEmbedding(2 * wanted["rope.freqs"].shape[0]).freqs.data
    problems = [f"missing {name}" for name in sorted(wanted.keys() - state.keys())]
    problems += [f"unexpected {name}" for name in sorted(state.keys() - wanted.keys())]
    problems += [
        f"{name} is {list(state[name].shape)} but should be {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & state.keys())
        if state[name].shape != wanted[name].shape
    ]
    problems += [
        f"{name} is {tensor.dtype} {tensor.layout} on {tensor.device} but should be dense and of real numbers"
        for name, tensor in sorted(state.items())
        if name in wanted and not _dense(tensor)
    ]
    if problems:
        raise ValueError(f"{source} does not fit the model, {len(problems)} names differ: {'; '.join(problems)}")
    return state


def _dense(tensor: Tensor) -> bool:
    """Whether these are real numbers in memory, as all of a model's weights are."""
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta


def resize_null_text(embedding: Tensor, length: int) -> Tensor:
    """[L, C] cut to `length` tokens, or its last row repeated up to it."""
    if embedding.shape[0] >= length:
        return embedding[:length]
    return torch.cat([embedding, embedding[-1:].expand(length - embedding.shape[0], -1)])


def _load_safe(path: Path) -> State:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or truncated: {_first_line(error)}") from error


def parts_of(index: Path) -> list[str]:
    """File names in a sharded index. Raises ValueError where it is none, or for a name that leads out of its folder."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        parts = sorted(set(weight_map.values()))
        astray = [part for part in parts if Path(part).name != part]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} is not an index of sharded weights") from error
    if astray:
        raise ValueError(f"{index} names the file {astray[0]!r}, which is not beside it")
    return parts


def _present(index: Path) -> list[str]:
    """File names in a sharded index, all of which are there."""
    parts = parts_of(index)
    for part in parts:
        if not (index.parent / part).is_file():
            raise FileNotFoundError(f"{index} names {part}, which is missing: the checkpoint is incomplete")
    return parts


def _merge(parts: list[State], index: Path) -> State:
    merged: State = {}
    for part in parts:
        merged.update(part)
    named: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    missing = sorted({str(name).removeprefix("module.") for name in named} - merged.keys())
    if missing:
        raise ValueError(f"{index} names {', '.join(missing)}, which its files do not hold")
    return merged


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
