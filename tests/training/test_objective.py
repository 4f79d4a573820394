import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import tiny
from brickreel.config import Run
from brickreel.training import objective
from brickreel.training.dataset import Batch
from brickreel.training.randomness import Showing

CPU = torch.device("cpu")


def batch(first: int = 0, count: int = 3, frames: int = 4) -> Batch:
    """Random posteriors whose showings are numbered from `first`."""
    samples = [
        torch.randn(3, 4, frames, 8, 8, generator=torch.Generator().manual_seed(first + n)) for n in range(count)
    ]
    mean = torch.stack([sample[0] for sample in samples]).bfloat16()
    logvar = torch.stack([sample[1] for sample in samples]).bfloat16()
    text = torch.stack([sample[2].reshape(-1)[: 6 * 16].reshape(1, 6, 16) for sample in samples]).bfloat16()
    return Batch(
        ids=[str(first + n) for n in range(count)],
        mean=mean,
        logvar=logvar,
        text=text,
        lengths=(6,) * count,
        showings=[Showing("run", first + n) for n in range(count)],
        valid=torch.ones(count),
        problems=[],
        frames=frames,
        height=64,
        width=64,
        fps=[8.0] * count,
        scaling_factor=0.18215,
    )


def part(whole: Batch, place: int) -> Batch:
    one = slice(place, place + 1)
    return Batch(
        **vars(whole)
        | {name: getattr(whole, name)[one] for name in ("ids", "mean", "logvar", "text", "lengths", "showings", "fps")}
        | {"valid": whole.valid[one]}
    )


@pytest.mark.parametrize("kind", ["iddpm", "rectified-flow"])
def test_a_samples_draw_and_loss_do_not_depend_on_its_neighbours(kind):
    run = Run(objective=kind, mask_ratios={"quarter_head": 0.5}, text_dropout=0.5)
    model, diffusion, whole = tiny.transformer(), objective.diffusion(run), batch()
    with torch.no_grad():
        together = objective.losses(diffusion, model, whole, objective.draw(whole, run, CPU))
        for place in range(3):
            alone = part(whole, place)
            found = objective.losses(diffusion, model, alone, objective.draw(alone, run, CPU))
            torch.testing.assert_close(found, together[place : place + 1], rtol=1e-5, atol=1e-6)


def test_latents_are_drawn_from_the_posterior_and_scaled():
    many = [objective.latents(batch(first=3 * n), CPU) for n in range(2)]
    whole = batch()
    fresh = (many[0] / whole.scaling_factor - whole.mean.float()) / (0.5 * whole.logvar.float()).exp()
    assert abs(fresh.mean()) < 0.05
    assert abs(fresh.std() - 1) < 0.05
    assert not torch.equal(many[0], many[1])


def test_timesteps_are_uniform_and_text_is_dropped_at_its_rate():
    run = Run(text_dropout=0.25)
    drawn = [objective.draw(batch(first=8 * n, count=8, frames=1), run, CPU) for n in range(100)]
    timesteps = np.concatenate([one.t.numpy() for one in drawn])
    assert 0 <= timesteps.min() <= 20
    assert 979 <= timesteps.max() < 1000
    assert abs(timesteps.mean() - 499.5) < 40
    assert abs(float(torch.cat([one.drop_text for one in drawn]).float().mean()) - 0.25) < 0.05


@pytest.mark.parametrize(("frames", "middle"), [(1, 500), (34, 748)])
def test_timesteps_of_rectified_flow_are_continuous_logit_normal_and_shifted_for_large_videos(frames, middle):
    run = Run(objective="rectified-flow")
    drawn = []
    for n in range(100):
        large = dataclasses.replace(batch(first=8 * n, count=8, frames=1), frames=frames, height=360, width=640)
        drawn.append(objective.timesteps(large, run))
    timesteps = torch.cat(drawn)
    assert (timesteps != timesteps.round()).any()
    assert timesteps.min() > 0
    assert timesteps.max() < 1000
    assert float(timesteps.median()) == pytest.approx(middle, abs=30)
    assert float((timesteps / 1000).logit().std()) == pytest.approx(1, abs=0.1)
    assert objective.draw(batch(first=3), run, CPU).t.tolist() == objective.timesteps(batch(first=3), run).tolist()


def test_masks_come_at_their_rates_and_none_without_ratios():
    run = Run(mask_ratios={"image_head": 0.5})
    drawn = [objective.draw(batch(first=8 * n, count=8), run, CPU).x_mask for n in range(25)]
    kinds = Counter(tuple(row.tolist()) for mask in drawn for row in mask)
    assert set(kinds) == {(True,) * 4, (False, True, True, True)}
    assert 70 < kinds[(False, True, True, True)] < 130
    assert objective.draw(batch(), Run(), CPU).x_mask is None


def test_a_draw_repeats_itself_for_the_same_showing_only():
    run = Run(mask_ratios={"quarter_random": 0.5})
    first, again, other = (objective.draw(batch(n), run, CPU) for n in (0, 0, 3))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first.noise, other.noise)


def test_losses_are_weighed_by_signal_only_where_the_run_says_so():
    t = torch.tensor([0, 100, 500, 999])
    kind = objective.diffusion(Run())
    assert objective.weights(kind, Run(), t) == 1.0
    found = objective.weights(kind, Run(p2={}), t)
    assert found.shape == (4,)
    assert 0 < found[0] < 0.01 < found[1] < 0.1 < found[2] < 0.5 < found[3] < 1
    with pytest.raises(ValidationError, match="p2 weighs the loss of iddpm"):
        Run(p2={}, objective="rectified-flow")
