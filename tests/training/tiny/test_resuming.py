"""A training in slices is the same, to the bit, as one at a stretch."""

import numpy as np
import torch
from torch import nn

from brickreel.training.tiny import resuming


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def _loss_on(model):
    def loss(step):
        x = torch.from_numpy(np.random.default_rng(step).standard_normal((8, 3), dtype=np.float32))
        value = (model(x).squeeze(1) - x.prod(dim=1)).square().mean()
        return value, {"square": value.item()}

    return loss


def _train(folder, steps, minutes=None):
    model = _model()
    rows = resuming.train("test", model, _loss_on(model), steps, 1e-2, folder, minutes)
    return model, rows


def test_a_training_stopped_and_resumed_ends_with_the_same_weights(tmp_path):
    whole, rows = _train(tmp_path / "whole", 60)
    slices = [_train(tmp_path / "slices", 60, minutes=1e-9) for _ in range(3)]

    assert [found is None for _, found in slices] == [True, True, False]
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, slices[-1][0].state_dict()[name]), name
    assert [row["square"] for row in slices[-1][1]] == [row["square"] for row in rows]


def test_the_log_holds_the_means_of_its_steps(tmp_path):
    model = _model()
    values = iter(range(1, 61))
    loss = _loss_on(model)
    _, rows = (
        model,
        resuming.train("test", model, lambda step: (loss(step)[0], {"n": next(values)}), 60, 1e-3, tmp_path),
    )

    assert [row["step"] for row in rows] == [25, 50, 60]
    assert [row["n"] for row in rows] == [13.0, 38.0, 55.5]


def test_a_finished_training_is_not_trained_again(tmp_path):
    first, _ = _train(tmp_path, 30)
    again, rows = _train(tmp_path, 30)

    assert rows[-1]["step"] == 30
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
