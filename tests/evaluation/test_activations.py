import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import tiny
from brickreel.config import Lora
from brickreel.evaluation import activations
from brickreel.models.stdit2 import STDiT2
from brickreel.training.lora import inject

SHAPE = activations.Shape(2, 4, 8, 8, 12, 16, 64, 64)


def _model(depth: int) -> STDiT2:
    return STDiT2(**{**tiny.TRANSFORMER, "depth": depth})


def _additions(depth: int) -> STDiT2:
    return inject(_model(depth), Lora(rank=4), seed=0)


def peak_bytes(model: STDiT2, gradients_stand: bool) -> int:
    """The most that the allocator had handed out during a real forward and backward pass, above what was there."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if gradients_stand:
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
    sizes = {name: torch.full((2,), 8.0) for name in ("num_frames", "height", "width", "fps")}
    drop = torch.zeros(2, dtype=torch.bool)
    inputs = torch.randn(2, 4, 4, 8, 8), torch.zeros(2), torch.randn(2, 1, 12, 16)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        model(*inputs, drop_text=drop, **sizes).square().mean().backward()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("gradients_stand", [True, False])
@pytest.mark.parametrize("build", [_model, _additions])
@pytest.mark.parametrize("depth", [2, 5])
def test_count_without_computing_equals_what_the_allocator_hands_out(depth, build, gradients_stand):
    counted = activations.activations(build, depth, SHAPE, torch.float32, gradients_stand)
    model = build(depth)
    assert counted.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert counted.trained == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert counted.plain == pytest.approx(peak_bytes(model, gradients_stand), rel=0.03)
    model = build(depth)
    model.enable_gradient_checkpointing()
    assert counted.checkpointed == pytest.approx(peak_bytes(model, gradients_stand), rel=0.03)
    assert counted.checkpointed < counted.plain


def test_additions_alone_take_less_than_all_weights():
    whole, additions = (
        activations.activations(build, 5, SHAPE, torch.float32, False) for build in (_model, _additions)
    )
    assert additions.trained < whole.trained / 5
    assert additions.parameters - additions.trained == whole.parameters
