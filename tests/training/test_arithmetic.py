import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import parity
from brickreel.config import Lora
from brickreel.models.stdit2 import STDiT2
from brickreel.training import lora
from brickreel.training.arithmetic import PASSES, Arithmetic

GRID = (8, 20, 24, 12)


@pytest.mark.parametrize(
    ("additions", "close"),
    [
        (None, 0.03),
        (Lora(), 0.03),
        (Lora(rank=4), 0.03),
        (Lora(targets=("qkv",)), 0.03),
        # What is in the first block before them, here a sixth of all, has no gradient: it is counted all the same.
        (Lora(targets=("kv_linear",)), 0.06),
        (Lora(targets=("fc1", "fc2")), 0.06),
    ],
    ids=str,
)
def test_the_flops_of_training_are_those_that_torch_counts(additions, close):
    sizes = {**parity.SIZES, "depth": 6}
    model = STDiT2(**sizes).train()
    if additions:
        lora.inject(model, additions, 0)
    frames, rows, columns, tokens = GRID
    x, y = torch.randn(1, 4, frames, rows, columns), torch.randn(1, 1, tokens, sizes["caption_channels"])
    with sdpa_kernel(SDPBackend.MATH), parity.flop_counter() as counter:
        model(x, torch.tensor([3]), y, **parity.made_sizes(1, frames)).sum().backward()
    told = Arithmetic.of(model)
    assert told.training_flops(*GRID) == pytest.approx(counter.get_total_flops(), rel=close)
    if additions:
        assert told.training_flops(*GRID) < 2.5 * told.forward_flops(*GRID)
    else:
        assert told.training_flops(*GRID) == PASSES * told.forward_flops(*GRID)
