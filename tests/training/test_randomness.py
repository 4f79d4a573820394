import os

import numpy as np
import pytest
import torch

from brickreel.training.randomness import STREAMS, Showing, repeat_exactly

CPU = torch.device("cpu")


def test_the_same_showing_draws_the_same_numbers():
    assert torch.equal(Showing("a", 7).normal("noise", (3, 5), CPU), Showing("a", 7).normal("noise", (3, 5), CPU))


def test_showings_streams_and_identities_draw_differently():
    draws = [Showing(name, n).normal(stream, (8,), CPU) for name in "ab" for n in (0, 1, 2**33) for stream in STREAMS]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(draws)


def test_normal_numbers_are_normal_and_neighbours_do_not_correlate():
    rows = np.stack([Showing("x", n).normal("noise", (2000,), CPU).numpy() for n in range(50)])
    assert abs(rows.mean()) < 0.02
    assert abs(rows.std() - 1) < 0.02
    correlations = np.corrcoef(rows)[~np.eye(50, dtype=bool)]
    assert abs(correlations).max() < 0.12


def test_unknown_stream_is_refused():
    with pytest.raises(ValueError, match="tuple"):
        Showing("x", 0).generator("nose")


def test_a_gpu_is_asked_for_sums_in_one_order(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    repeat_exactly(CPU)
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        repeat_exactly(torch.device("cuda", 0))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled(), "what has no such form runs all the same"
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
