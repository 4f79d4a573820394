"""How many ranks train one model: one small interface, one backend per file. The model's code knows none of them."""

import importlib

import torch
from torch import nn

from brickreel.config import Run
from brickreel.models.stdit2 import fused
from brickreel.training.backends.base import Backend
from brickreel.training.randomness import repeat_exactly

_CLASSES = {"ddp": "DataParallel", "fsdp2": "FullySharded", "colossalai": "ColossalZero"}


def choose(wanted: str, world_size: int, device: torch.device) -> str:
    """The backend's name: `auto` is fsdp2 on several GPUs, ddp otherwise."""
    if wanted != "auto":
        return wanted
    return "fsdp2" if world_size > 1 and device.type == "cuda" else "ddp"


def build(name: str, model: nn.Module, run: Run, world_size: int, device: torch.device) -> Backend:
    """Put a model under a backend. Only the chosen one is imported."""
    fused.Kernels.compiled = run.compile_kernels
    repeat_exactly(device)
    module = importlib.import_module(f"brickreel.training.backends.{name}")
    return getattr(module, _CLASSES[name])(model, run, world_size, device)
