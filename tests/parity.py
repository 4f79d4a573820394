"""Reference inputs and outputs of Open-Sora 1.1 with random weights, under tests/data/parity."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from brickreel.models.stdit2 import STDiT2

FOLDER = Path(__file__).parent / "data" / "parity"
SIZES = {"depth": 2, "hidden_size": 144, "num_heads": 2, "caption_channels": 48, "model_max_length": 12}


DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))


def model() -> STDiT2:
    """The reference model in evaluation mode."""
    result = STDiT2(**SIZES).eval()
    result.load_state_dict(load_file(FOLDER / "stdit2_d2_h144.safetensors"))
    return result


def arrays(name: str) -> dict[str, torch.Tensor]:
    """All arrays of one reference file, by their names."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored}


def case(name: str, label: str) -> dict[str, torch.Tensor]:
    """The arrays of one case of a reference file."""
    return {key.split("/", 1)[1]: value for key, value in arrays(name).items() if key.startswith(f"{label}/")}


def on(device: str, case: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A case with its inputs on a device; what it is compared with, `out...`, stays."""
    return {name: value if name.startswith("out") else value.to(device) for name, value in case.items()}


def sizes(case: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The conditioning of a case: frames, pixels, aspect ratio, rate."""
    return {key: case[key] for key in ("num_frames", "height", "width", "ar", "fps")}


def made_sizes(samples: int, frames: int, height: float = 360.0, width: float = 640.0, fps: float = 24.0, device="cpu"):
    """Conditioning for `samples` videos of one size."""
    values = {"num_frames": frames, "height": height, "width": width, "ar": height / width, "fps": fps}
    return {key: torch.full((samples,), float(value), device=device) for key, value in values.items()}


def flop_counter() -> FlopCounterMode:
    """torch's counter, told of the product of linear layers in fp32."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: _linear_flops})


def _linear_flops(x, weight, *others, out_shape=None, **more):
    return 2 * math.prod(x) * weight[0]
