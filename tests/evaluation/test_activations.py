import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import tiny
from brickreel.config import Lora
from brickreel.evaluation import activations
from brickreel.evaluation.activations import Precision
from brickreel.models.stdit2 import STDiT2
from brickreel.training.lora import inject

SHAPE = activations.Shape(2, 4, 8, 8, 12, 16, 64, 64)
FP32 = Precision(torch.float32)
AUTOCAST = Precision(torch.float32, torch.bfloat16)


def _model(depth: int) -> STDiT2:
    return STDiT2(**{**tiny.TRANSFORMER, "depth": depth})


def _additions(depth: int) -> STDiT2:
    return inject(_model(depth), Lora(rank=4), seed=0)


def peak_bytes(
    model: STDiT2, gradients_stand: bool, products: torch.dtype | None = None, shape: activations.Shape = SHAPE
) -> int:
    """The most that the allocator had handed out during a real forward and backward pass, above what was there."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if gradients_stand:
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
    sizes = {name: torch.full((2,), 8.0) for name in ("num_frames", "height", "width", "fps")}
    drop = torch.zeros(2, dtype=torch.bool)
    video = torch.randn(2, 4, shape.frames, shape.latent_height, shape.latent_width)
    inputs = video, torch.zeros(2), torch.randn(2, 1, 12, 16)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        with torch.autocast("cpu", products, enabled=products is not None):
            loss = model(*inputs, drop_text=drop, **sizes).square().mean()
        loss.backward()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("precision", [FP32, AUTOCAST])
@pytest.mark.parametrize("gradients_stand", [True, False])
@pytest.mark.parametrize("build", [_model, _additions])
@pytest.mark.parametrize("depth", [2, 5])
def test_count_without_computing_equals_what_the_allocator_hands_out(depth, build, gradients_stand, precision):
    # At this size the narrow copies of weights, which stand or go with autocast, are a large part of the count.
    limit = 0.03 if precision.products is None else 0.06
    counted = activations.activations(build, depth, SHAPE, precision, gradients_stand)
    model = build(depth)
    assert counted.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert counted.trained == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert counted.plain == pytest.approx(peak_bytes(model, gradients_stand, precision.products), rel=limit)
    if precision.products and depth > 2:
        return  # of many small blocks the narrow weights, all there at the forward pass's end, are the worst moment
    model = build(depth)
    model.enable_gradient_checkpointing()
    assert counted.checkpointed == pytest.approx(peak_bytes(model, gradients_stand, precision.products), rel=limit)
    assert counted.checkpointed < counted.plain


@pytest.mark.parametrize("precision", [FP32, AUTOCAST])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_checkpoints_at_some_blocks_take_what_the_allocator_hands_out(blocks, precision):
    shape = SHAPE._replace(frames=16, latent_height=16, latent_width=16)  # activations are most of it, as in real runs
    counted = activations.activations(_model, 5, shape, precision)
    model = _model(5)
    model.recompute(blocks / 5)
    assert counted.at(blocks) == pytest.approx(peak_bytes(model, True, precision.products, shape), rel=0.04)
    assert (counted.at(0), counted.at(5)) == (counted.plain, counted.checkpointed)


def test_additions_alone_take_less_than_all_weights():
    whole, additions = (activations.activations(build, 5, SHAPE, FP32, False) for build in (_model, _additions))
    assert additions.trained < whole.trained / 5
    assert additions.parameters - additions.trained == whole.parameters


@pytest.mark.slow
def test_under_autocast_the_residual_stream_is_in_the_precision_of_the_products():
    shape = SHAPE._replace(frames=16, latent_height=32, latent_width=32)

    def per_block(precision: Precision) -> float:
        """What a checkpoint keeps: the block's input."""
        five, nine = (activations.activations(_model, depth, shape, precision) for depth in (5, 9))
        return (nine.checkpointed - five.checkpointed) / 4

    assert per_block(AUTOCAST) == pytest.approx(per_block(FP32) / 2, rel=0.1)
    assert per_block(AUTOCAST) == pytest.approx(per_block(Precision(torch.bfloat16)), rel=0.1)
