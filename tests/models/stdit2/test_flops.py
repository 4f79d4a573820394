import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import parity
from brickreel.models.stdit2 import STDiT2
from brickreel.models.stdit2.flops import forward_flops
from brickreel.models.stdit2.model import PRESETS


@pytest.mark.parametrize(
    ("frames", "rows", "columns", "tokens", "changes"),
    [(1, 8, 8, 3, {}), (5, 7, 11, 12, {}), (4, 6, 10, 9, {"depth": 5, "hidden_size": 96, "pred_sigma": False})],
)
def test_the_formula_counts_what_torch_counts(frames, rows, columns, tokens, changes):
    sizes = {**parity.SIZES, **changes}
    model = STDiT2(**sizes).eval()
    x, y = torch.randn(1, 4, frames, rows, columns), torch.randn(1, 1, tokens, sizes["caption_channels"])
    # torch's counter does not know the CPU's fused attention kernel; the plain one consists of products that it counts.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), parity.flop_counter() as counter:
        model(x, torch.tensor([3]), y, **parity.made_sizes(1, frames))
    counted = counter.get_total_flops()
    assert forward_flops(sizes, frames, rows, columns, tokens) == pytest.approx(counted, rel=1e-6)
    assert forward_flops(model.config, frames, rows, columns, tokens) == pytest.approx(counted, rel=1e-6)


@pytest.mark.parametrize(("frames", "tera"), [(32, 43.8), (64, 87.8)])
def test_a_clip_of_the_origin_costs_what_was_derived_for_it(frames, tera):
    assert forward_flops(PRESETS["XL/2"], frames, 45, 80, 200) / 1e12 == pytest.approx(tera, rel=0.01)


def test_a_missing_size_is_named():
    with pytest.raises(ValueError, match="no hidden_size"):
        forward_flops({"depth": 2}, 1, 2, 2, 1)
