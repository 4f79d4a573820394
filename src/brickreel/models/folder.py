"""Writes a model as a folder that diffusers loads by itself, code included."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers

from brickreel.models import load
from brickreel.models.bundle import PIPELINE, TRANSFORMER, bundle
from brickreel.models.stdit2 import STDiT2

INDEX = "model_index.json"
SAMPLING = "sampling.json"
PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
# Files of a published part that its loading needs; other precisions and frameworks are left behind, and the tokenizer
# has a folder of its own.
KEPT = re.compile(
    r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors|(?!tokenizer|special_tokens|added_tokens)[\w-]+\.json"
    r"|[\w-]+\.safetensors\.index\.json"
)


def write(
    target: str | os.PathLike[str],
    transformer: STDiT2,
    base: Any,
    objective: str,
    beside: Mapping[str, str],
    add: Callable[[Path], None] | None = None,
) -> None:
    """Write the pipeline's folder: whole, or not at all.

    Args:
        target: the folder; what was there is replaced.
        transformer: the model to publish.
        base: has autoencoder and text_encoder, each with path, revision and subfolder; they are copied.
        objective: "iddpm" or "rectified-flow".
        beside: texts that stand beside the model, by file name, such as README.md.
        add: puts what else belongs there into the folder, before it appears.

    Raises:
        FileNotFoundError, ValueError: when a part of the base is missing or damaged; `target` is then as it was.
    """
    with _replacing_folder(Path(target)) as folder:
        transformer.save_pretrained(folder / "transformer")
        _copy_autoencoder(folder / "vae", base.autoencoder)
        _copy_text_encoder(folder, base.text_encoder)
        load.scheduler(objective).save_pretrained(folder / "scheduler")
        for name, text in beside.items():
            _write(folder / name, text)
        if add:
            add(folder)
        _finish(folder)


def save(target: str | os.PathLike[str], pipeline: Any, **options: Any) -> None:
    """Write a loaded pipeline's parts as such a folder; `options` go to the parts that have weights."""
    with _replacing_folder(Path(target)) as folder:
        for part in PARTS:
            kwargs = options if part in ("transformer", "vae", "text_encoder") else {}
            getattr(pipeline, part).save_pretrained(folder / part, **kwargs)
        if pipeline.sampling is not None:
            _write(folder / SAMPLING, pipeline.sampling)
        _finish(folder)


def _finish(folder: Path) -> None:
    """Add the code, then the index, without which it is not a pipeline."""
    _write(folder / "transformer" / "transformer.py", bundle(TRANSFORMER, "STDiT2, as brickreel exported it."))
    _write(folder / "pipeline.py", bundle(PIPELINE, "The text-to-video pipeline, as brickreel exported it."))
    tokenizer = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text(encoding="utf-8"))
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    index = {
        "_class_name": ["pipeline", "TextToVideoPipeline"],
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", tokenizer.get("tokenizer_class", "T5Tokenizer")],
        "transformer": ["transformer", "STDiT2"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _copy_autoencoder(target: Path, part: Any) -> None:
    source = load.locate("autoencoder", part.path, part.revision, part.subfolder, weights=True)
    loaded = load.autoencoder(part.path, part.revision, part.subfolder)
    if not _copy(source, target):
        loaded.vae.save_pretrained(target)


def _copy_text_encoder(folder: Path, part: Any) -> None:
    """The encoder and the tokenizer, each in its own folder, as diffusers has them."""
    source = load.locate("text_encoder", part.path, part.revision, part.subfolder, weights=True)
    words = load.tokenizer(source)
    words.save_pretrained(folder / "tokenizer")
    if not _copy(source, folder / "text_encoder"):
        load.text_encoder(part.path, part.revision, part.subfolder).model.save_pretrained(folder / "text_encoder")
    # transformers computes in the precision that weights are stored in unless the settings or the caller name another:
    # who names none gets fp32, as brickreel's own loading does.
    config = folder / "text_encoder" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("torch_dtype", None)
    _write(config, json.dumps(settings | {"dtype": "float32"}, indent=2) + "\n")


def _copy(source: Path, target: Path) -> bool:
    """Copy a part that has safetensors; False, with nothing copied, when it has none."""
    kept = [path for path in source.iterdir() if KEPT.fullmatch(path.name) and path.is_file()]
    if not any(path.suffix == ".safetensors" for path in kept):
        return False
    target.mkdir(parents=True, exist_ok=True)
    for path in kept:
        shutil.copyfile(path, target / path.name)
    return True


@contextmanager
def _replacing_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`, which takes its place when all went well.

    A folder cannot be replaced in one step: the old one is moved aside first, and back if the second step fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    aside = fresh.with_name(fresh.name + "-old")
    try:
        fresh.chmod(0o755)
        yield fresh
        if target.exists():
            os.replace(target, aside)
        try:
            os.replace(fresh, target)
        except OSError:
            if aside.exists():
                os.replace(aside, target)
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
