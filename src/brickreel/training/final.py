"""The final weights: two folders that `STDiT2.from_pretrained` loads, both there or neither."""

import os
import shutil
from pathlib import Path
from typing import Any

from brickreel import files
from brickreel.config import Base, Run
from brickreel.training import checkpoint, lora

ABOUT = "final.json"
WHICH = ("raw", "ema")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def read(folder: Path) -> dict[str, Any] | None:
    """What the final weights of a run are: step, order and recipe; None when they are not complete."""
    about = folder / "final" / ABOUT
    if not about.is_file() or not all((folder / "final" / which / WEIGHTS).is_file() for which in WHICH):
        return None
    return files.read_json(about)


def write(folder: Path, source: Path, base: Base, run: Run) -> None:
    """Write `final/raw`, `final/ema` and `final/final.json` from a checkpoint, whole or not at all."""
    partial, final = folder / ".final.partial", folder / "final"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for which in WHICH:
            # Both lie in the same files, which are hashed once: that takes minutes.
            transformer = lora.load_transformer(source, which, base, run, check=which == WHICH[0])
            transformer.save_pretrained(partial / which, max_shard_size="100GB")
        state = checkpoint.read_state(source)
        told = {name: state[name] for name in ("step", "samples", "order", "recipe") if name in state}
        about = told | {"checkpoint": source.name}
        files.write_json(partial / ABOUT, about)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
