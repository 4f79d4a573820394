"""Which recording belongs to which attempt of a run."""

from types import SimpleNamespace

import numpy as np
import pytest

from brickreel.telemetry import training
from brickreel.telemetry.steps import Steps
from telemetry.logs import attempt


def seen(log, *spans):
    run = SimpleNamespace(attempts=log, steps={})
    found = training.attempts_of(run, [SimpleNamespace(span_s=span) for span in spans])
    return [(one.start_s, one.end_s) for one in found]


@pytest.mark.parametrize(("share", "factor"), [(True, 4 / 3), (0.5, 7 / 6), (False, 1), (None, 1)])
def test_hfu_counts_the_share_of_blocks_that_are_recomputed(share, factor, monkeypatch):
    monkeypatch.setattr(training.goodput, "model_flops", lambda _: {"tflop_per_s_per_gpu": 98.9})
    run = SimpleNamespace(settings={"grad_checkpoint": share})
    found = training._flop_use(run, (), [{"name": "NVIDIA H100 80GB HBM3"}])
    assert found["hfu_pct"] == pytest.approx(factor * found["mfu_pct"])
    assert found["recomputes"] == bool(share)


def test_an_attempt_lasts_as_long_as_the_recordings_that_saw_it_begin():
    log = attempt(0, 100.0, 200.0) + attempt(1, 260.0, None)
    nodes = [(70.0, 201.0), (75.0, 202.0)]
    assert seen(log, *nodes, (220.0, 300.0), (221.0, 290.0)) == [(70, 202), (220, 300)]


def test_a_recording_after_the_beginning_belongs_to_the_attempt_before_it():
    assert seen(attempt(0, 100.0, None), (104.0, 180.0)) == [(100, 180)]


def test_a_recording_of_an_attempt_that_never_began_is_nobodys():
    assert seen(attempt(0, 100.0, 120.0), (10.0, 60.0)) == [(100, 120)]


def test_a_look_at_a_finished_run_does_not_make_its_last_attempt_longer():
    assert seen(attempt(0, 100.0, 120.0), (99.0, 121.0), (500.0, 503.0)) == [(99, 121)]


def test_a_restart_that_dies_before_its_attempt_began_does_not_bill_the_hours_since_the_one_before():
    log = SimpleNamespace(attempts=attempt(0, 100.0, None), steps={})
    assert training.attempt_of(log, (3700.0, 3720.0)) is None
    assert training.attempt_of(log, (104.0, 180.0)) == 0


def test_an_attempt_that_was_cut_off_lived_until_its_last_step():
    steps = Steps(np.array([1, 2]), 1)
    steps.by_rank = {"time_s": np.array([[150.0], [400.0]])}
    run = SimpleNamespace(attempts=attempt(0, 100.0, None), steps={0: steps})
    assert training.attempt_of(run, (399.0, 420.0)) == 0
    assert training.attempt_of(run, (410.0, 420.0)) is None
