import random

import pytest
import torch

import parity
from brickreel.config.training import MASKS
from brickreel.diffusion import masks

STAGE_3 = {
    "no": 0.75, "quarter_random": 0.025, "quarter_head": 0.025, "quarter_tail": 0.025, "quarter_head_tail": 0.05,
    "image_random": 0.025, "image_head": 0.025, "image_tail": 0.025, "image_head_tail": 0.05,
}  # fmt: skip
"""The original's."""


def test_draws_equal_the_originals():
    chance = random.Random(0)
    for label, wanted in parity.arrays("mask_generator_seed0").items():
        frames = int(label[1:])
        found = torch.stack([masks.draw(STAGE_3, frames, chance) for _ in wanted])
        assert torch.equal(found, wanted), label


@pytest.mark.parametrize("strategy", masks.STRATEGIES)
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 17])
def test_every_strategy_works_for_every_length(strategy, frames):
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        mask = masks.draw({strategy: 1.0}, frames, generator)
        assert mask.shape == (frames,)
        assert mask.any()
        assert mask.all() == (frames == 1)


def test_the_settings_know_the_strategies():
    assert {*masks.STRATEGIES, "no"} == set(MASKS)


def test_shares_are_met():
    generator = torch.Generator().manual_seed(1)
    drawn = [masks.draw({"image_head": 0.3}, 8, generator) for _ in range(2000)]
    assert sum(not mask[0] for mask in drawn) / 2000 == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(("ratios", "words"), [({"half": 0.1}, "not known"), ({"image_head": 1.2}, "at most 1")])
def test_wrong_ratios_are_refused(ratios, words):
    with pytest.raises(ValueError, match=words):
        masks.draw(ratios, 4, torch.Generator())
