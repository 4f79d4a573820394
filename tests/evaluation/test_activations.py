import pytest
import torch

import tiny
from brickreel.evaluation import activations
from brickreel.models.stdit2 import STDiT2


def _model(depth: int) -> STDiT2:
    return STDiT2(**{**tiny.TRANSFORMER, "depth": depth})


@pytest.mark.parametrize("depth", [2, 5])
def test_count_without_computing_equals_what_a_real_forward_pass_leaves_alive(depth):
    shape = activations.Shape(2, 4, 8, 8, 12, 16, 64, 64)
    counted = activations.activations(_model, depth, shape, torch.float32)
    model = _model(depth).train()
    sizes = {name: torch.full((2,), 8.0) for name in ("num_frames", "height", "width", "fps")}
    drop = torch.zeros(2, dtype=torch.bool)
    inputs = torch.randn(2, 4, 4, 8, 8), torch.zeros(2), torch.randn(2, 1, 12, 16)
    with activations._Made() as made:
        output = model(*inputs, drop_text=drop, **sizes)
    real = made.alive() - output.untyped_storage().nbytes()
    assert counted.plain == pytest.approx(real, rel=0.05)
    assert counted.checkpointed < counted.plain
    assert counted.parameters == sum(parameter.numel() for parameter in model.parameters())
