"""The parts of a base model, from a folder, from the hub's cache on this machine, or from what brickreel ships.

Nothing is downloaded here: weights are fetched once, on a machine with network, and everything that is missing is one
sentence that says how, before any job is submitted.
"""

import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from brickreel.models.autoencoder import Autoencoder
from brickreel.models.stdit2 import STDiT2
from brickreel.models.stdit2.weights import SAFE_NAMES, UNSAFE, fit, parts_of, read_safetensors
from brickreel.models.text_encoder import TextEncoder

BUILTIN = "builtin:"
OBJECTIVES = ("iddpm", "rectified-flow")
SETTINGS = "config.json"
# What a part's weights are called, best first: in one piece, or in shards that an index beside them names.
WEIGHTS = {
    "transformer": SAFE_NAMES,
    "autoencoder": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "text_encoder": ("model.safetensors", "pytorch_model.bin"),
}
# Without one of these transformers makes a tokenizer that knows no words.
VOCABULARIES = ("tokenizer.json", "spiece.model")
KINDS = (".safetensors", ".bin")
PATTERNS = ("*.json", "*.safetensors", "*.model", "*.bin")
_VOCABULARY = f"{' or '.join(VOCABULARIES)} that is not empty, in it or in `tokenizer` beside it"
KNOWN = inspect.signature(STDiT2.__init__).parameters.keys() - {"self"}
_PEEK = 1 << 20  # bytes at either end of a file that tell it from another: training changes all weights


def locate(
    part: str, path: str, revision: str | None = None, subfolder: str | None = None, weights: bool = False
) -> Path:
    """The folder of a part ("transformer", "autoencoder" or "text_encoder") on this machine.

    Args:
        path: a folder, a hub name such as "stabilityai/sd-vae-ft-ema", or "builtin:tiny".
        revision: commit of the hub repository.
        subfolder: folder inside it.
        weights: ask for all that loading needs: every file of its weights, and the text encoder's vocabulary. Else the
            settings are enough.

    Raises:
        FileNotFoundError: in one sentence: what is missing and how to get it.
        ValueError: for a damaged index of weights.
    """
    if path.startswith(BUILTIN):
        folder = Path(str(resources.files("brickreel"))) / "assets" / path.removeprefix(BUILTIN) / part
        where, advice = f"brickreel ships no model '{path}' ({part}): {folder}", ""
    elif Path(path).expanduser().is_dir():
        folder = Path(path).expanduser() / (subfolder or "")
        where = f"base.{part}: {folder}"
        advice = f", so that it is not a {part}: put it there, or set base.{part}.path to a folder that is whole"
    else:
        folder = _in_hub_cache(part, path, revision) / (subfolder or "")
        where = f"base.{part}: the cached {path}, in '{subfolder or '.'}',"
        advice = f": run `{_fetch(path, revision)}` where there is network"
    lacking = _lacking(part, folder) if weights or not (folder / SETTINGS).is_file() else ""
    if lacking:
        made = "; `brickreel convert` makes it of an Open-Sora checkpoint" if part == "transformer" else ""
        raise FileNotFoundError(f"{where} has no {lacking}{advice}{made}")
    return folder


def _lacking(part: str, folder: Path) -> str:
    """What is not in a part's folder, or nothing."""
    if not (folder / SETTINGS).is_file():
        return SETTINGS
    if part == "text_encoder" and _words(folder) is None:
        return _VOCABULARY
    for name in WEIGHTS[part]:
        if (folder / name).is_file():
            return ""
        index = folder / f"{name}.index.json"
        if index.is_file():
            return ", ".join(file for file in parts_of(index) if not (folder / file).is_file())
    return " or ".join(WEIGHTS[part])


def _words(folder: Path) -> Path | None:
    """Where the vocabulary of a text encoder's folder is: in it, or in `tokenizer` beside it."""
    for place in (folder, folder.parent / "tokenizer"):
        if any((place / name).is_file() and (place / name).stat().st_size for name in VOCABULARIES):
            return place
    return None


def fingerprint(part: str, path: str, revision: str | None = None, subfolder: str | None = None) -> str:
    """Tells the weights and settings of a part from others at the same place, without reading them whole.

    Raises FileNotFoundError where they are not on this machine.
    """
    found = hashlib.sha256()
    folder = locate(part, path, revision, subfolder, weights=True)
    for file in sorted(folder.iterdir()):
        if any(map(file.match, PATTERNS)) and not _is_spare(part, file):
            found.update(f"{file.name} {file.stat().st_size} ".encode())
            with file.open("rb") as stream:
                found.update(stream.read(_PEEK))
                stream.seek(max(0, file.stat().st_size - _PEEK))
                found.update(stream.read())
    return found.hexdigest()


def _is_spare(part: str, file: Path) -> bool:
    """Whether weights are not loaded, since there are others of a kind that goes before: they may come and go."""
    used = next((name for name in WEIGHTS[part] if any(file.parent.glob(f"{name}*"))), "")
    return any(kind in file.name for kind in KINDS if kind != Path(used).suffix)


def _in_hub_cache(part: str, name: str, revision: str | None) -> Path:
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise FileNotFoundError(f"base.{part}: there is no folder {name}, and it is not a hub name either")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=list(PATTERNS)))
    except (LocalEntryNotFoundError, HFValidationError):
        raise FileNotFoundError(
            f"base.{part}: '{name}' is neither a folder nor in the hub cache of this machine: run"
            f" `{_fetch(name, revision)}` where there is network (the cache is shared through HF_HOME), or set"
            f" base.{part}.path to a folder that has it"
        ) from None


def _fetch(name: str, revision: str | None) -> str:
    return f"hf download {name}" + (f" --revision {revision}" if revision else "")


def transformer(
    path: str,
    revision: str | None = None,
    subfolder: str | None = None,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> STDiT2:
    """STDiT2 with its weights, in evaluation mode on the CPU. `overrides` replace settings of its config.json.

    Reads what brickreel and diffusers write and what Open-Sora published. Raises FileNotFoundError for missing weights,
    ValueError for weights that do not fit exactly or are damaged.
    """
    folder = locate("transformer", path, revision, subfolder, weights=True)
    with torch.device("meta"):  # nothing is initialised that is overwritten anyway
        model = empty_transformer(folder, **overrides)
    model.load_state_dict(fit(read_safetensors(folder), model, str(folder)), strict=True, assign=True)
    return torch.nn.Module.to(model, dtype=dtype).eval()  # type: ignore[return-value]


def empty_transformer(folder: str | os.PathLike[str], **overrides: Any) -> STDiT2:
    """A freshly initialised STDiT2 with the settings of a folder's config.json, whoever wrote it."""
    unknown = sorted(overrides.keys() - KNOWN)
    if unknown:
        raise ValueError(f"STDiT2 has no setting {unknown}: choose from {', '.join(sorted(KNOWN))}")
    return built({**settings(folder), **overrides}, Path(folder) / SETTINGS)


def built(chosen: Mapping[str, Any], source: str | os.PathLike[str]) -> STDiT2:
    """A freshly initialised STDiT2 with settings from `source`, which is named where it can have no such."""
    try:
        return STDiT2(**chosen)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{source} has settings that no STDiT2 can have: {error}") from error


def settings(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """STDiT2's settings in a folder's config.json; others are left out. Raises ValueError for another model's."""
    source = Path(folder) / SETTINGS
    try:
        stored = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{source} is not valid JSON: {error}") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{source} does not hold a model's settings by name")
    kind = stored.get("_class_name") or stored.get("architectures") or "STDiT2"
    kind = kind[-1] if isinstance(kind, list) else kind
    if kind != "STDiT2":
        raise ValueError(f"{source} describes a {kind}, not an STDiT2")
    return {name: value for name, value in stored.items() if name in KNOWN}


def autoencoder(
    path: str,
    revision: str | None = None,
    subfolder: str | None = None,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> Autoencoder:
    """The autoencoder in evaluation mode on the CPU. `overrides` go to Autoencoder, such as frames_per_batch."""
    from diffusers import AutoencoderKL

    folder = locate("autoencoder", path, revision, subfolder, weights=True)
    vae = _whole(AutoencoderKL, folder, torch_dtype=dtype)
    return Autoencoder(vae.eval(), **overrides)


def text_encoder(
    path: str,
    revision: str | None = None,
    subfolder: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> TextEncoder:
    """T5's encoder with its tokenizer, in evaluation mode on the CPU."""
    from transformers import T5EncoderModel

    folder = locate("text_encoder", path, revision, subfolder, weights=True)
    words = tokenizer(folder)
    # T5 is published whole as well: with what makes text of its encoder's output.
    return TextEncoder(words, _whole(T5EncoderModel, folder, ("decoder.", "lm_head."), dtype=dtype).eval())


def tokenizer(folder: Path) -> Any:
    """The tokenizer of a text encoder's folder: in it, or in `tokenizer` beside it.

    Raises FileNotFoundError where neither has a vocabulary, ValueError for a damaged one. No code in them is run.
    """
    from transformers import AutoTokenizer

    place = _words(folder)
    if place is None:
        raise FileNotFoundError(f"{folder} has no {_VOCABULARY}: fetch it from where the text encoder is from")
    return _from_pretrained(AutoTokenizer, place, trust_remote_code=False)


def scheduler(objective: str) -> Any:
    """The diffusers scheduler that describes how the weights were trained. Raises ValueError for another objective."""
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    if objective == "rectified-flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    if objective == "iddpm":
        return DDPMScheduler(
            num_train_timesteps=1000,
            beta_start=1e-4,
            beta_end=0.02,
            beta_schedule="linear",
            variance_type="learned_range",
            clip_sample=False,
            timestep_spacing="linspace",
        )
    raise ValueError(f"objective '{objective}' is not known: choose from iddpm, rectified-flow")


def scheduler_of(folder: Path) -> Any:
    """The scheduler that a folder describes. Raises FileNotFoundError or ValueError when there is none of ours."""
    source = folder / "scheduler_config.json"
    if not source.is_file():
        raise FileNotFoundError(f"{folder} has no scheduler_config.json: the model's folder is incomplete")
    try:
        name = json.loads(source.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{source} does not describe a scheduler") from error
    kinds = {type(scheduler(objective)).__name__: type(scheduler(objective)) for objective in OBJECTIVES}
    if name not in kinds:
        raise ValueError(f"{source} describes a {name}: choose from {', '.join(kinds)}")
    return _from_pretrained(kinds[name], folder)


def objective_of(transformer: Path) -> str:
    """What the weights in a transformer's folder were trained for: as the scheduler beside it says, else IDDPM."""
    beside = transformer.parent / "scheduler"
    if not (beside / "scheduler_config.json").is_file():
        return "iddpm"
    return next(name for name in OBJECTIVES if type(scheduler(name)) is type(scheduler_of(beside)))


def _from_pretrained(kind: Any, folder: Path, **options: Any) -> Any:
    """Load a part of another library from a folder; whatever is wrong with its files becomes one sentence."""
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, **options)
    except UnpicklingError as error:
        raise ValueError(f"{folder} cannot be loaded as {kind.__name__}: a file in it {UNSAFE}") from error
    except Exception as error:  # the readers of damaged files raise whatever they come to
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{folder} cannot be loaded as {kind.__name__}: {detail}") from error


def _whole(kind: Any, folder: Path, ignored: tuple[str, ...] = (), **options: Any) -> Any:
    """A model with all of its weights and no others, except those whose names begin with one of `ignored`.

    The libraries would fill what is missing with random numbers, or with none at all.
    """
    model, info = _from_pretrained(kind, folder, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    unread = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    names = {
        "missing": {*info["missing_keys"], *unread},
        "unexpected": {name for name in info["unexpected_keys"] if not name.startswith(ignored)},
        "misshapen": {name for name, *_ in info["mismatched_keys"]},
    }
    problems = [f"{problem} {name}" for problem in names for name in sorted(names[problem])]
    if problems:
        raise ValueError(f"{folder} does not fit {kind.__name__}, {len(problems)} names differ: {'; '.join(problems)}")
    return model
