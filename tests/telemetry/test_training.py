"""Which recording belongs to which attempt of a run."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from brickreel.telemetry import steps, training
from brickreel.telemetry.goodput import Attempt
from brickreel.telemetry.project import RunFiles
from brickreel.telemetry.steps import Steps
from telemetry.logs import attempt, write_steps


def seen(log, *spans):
    found = training.attempts_of(RunFiles("run", attempts=log), [SimpleNamespace(span_s=span) for span in spans])
    return [(one.start_s, one.end_s) for one in found]


@pytest.mark.parametrize(("share", "factor"), [(True, 4 / 3), (0.5, 7 / 6), (False, 1), (None, 1)])
def test_hfu_counts_the_share_of_blocks_that_are_recomputed(share, factor, monkeypatch):
    monkeypatch.setattr(training.goodput, "model_flops", lambda _: {"tflop_per_s_per_gpu": 98.9})
    run = SimpleNamespace(settings={"grad_checkpoint": share})
    found = training._flop_use(run, (), [{"name": "NVIDIA H100 80GB HBM3"}])
    assert found["hfu_pct"] == pytest.approx(factor * found["mfu_pct"])
    assert found["recomputes"] == bool(share)


@pytest.mark.parametrize(("lora", "factor"), [(None, 4 / 3), ({"rank": 8}, 3 / 2)])
def test_a_recomputed_forward_pass_weighs_more_where_lora_makes_the_backward_pass_shorter(lora, factor, monkeypatch):
    monkeypatch.setattr(training.goodput, "model_flops", lambda _: {"tflop_per_s_per_gpu": 98.9})
    run = SimpleNamespace(settings={"run": {"grad_checkpoint": True, "lora": lora}})
    found = training._flop_use(run, (), [{"name": "NVIDIA H100 80GB HBM3"}])
    assert found["hfu_pct"] == pytest.approx(factor * found["mfu_pct"])


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
    taken = Steps(np.array([1, 2]), 1)
    taken.by_rank = {"time_s": np.array([[150.0], [400.0]])}
    run = SimpleNamespace(attempts=attempt(0, 100.0, None), steps={0: taken})
    assert training.attempt_of(run, (399.0, 420.0)) == 0
    assert training.attempt_of(run, (410.0, 420.0)) is None


def written(log, last_step_s, checkpoints=(2,), ended=True, **more):
    """A run of six steps with these checkpoints, and one recording of its last attempt."""
    taken = Steps(np.arange(1, 7), 1, skipped=np.zeros(6, bool))
    taken.by_rank |= {name: np.zeros((6, 1)) for name in taken.by_rank}
    taken.by_rank["time_s"] = (last_step_s + np.arange(-5.0, 1.0))[:, None]
    run = RunFiles("run", attempts=log, steps={0: taken}, checkpoints=list(checkpoints), **more)
    begin = log[-1]["time_s"] if log[-1]["event"] == "start" else log[0]["time_s"]
    attempts = training.attempts_of(run, [SimpleNamespace(span_s=(begin, last_step_s), ended=ended)])
    return [int(one.kept.sum()) for one in attempts], training._unsaved(attempts, training.saved_step(run))


@pytest.mark.parametrize("outcome", ["failed", "dropped"])
def test_a_run_that_ended_without_finishing_keeps_what_lies_in_a_checkpoint(outcome):
    assert written(attempt(0, 100.0, 200.0, outcome=outcome), 190.0) == ([2], 0)
    assert written(attempt(0, 100.0, 200.0, outcome=outcome), 190.0, final_step=5) == ([5], 0)


def test_a_run_that_finished_keeps_all_also_without_its_checkpoints():
    assert written(attempt(0, 100.0, 200.0), 190.0, checkpoints=()) == ([6], 0)


def test_a_run_without_an_end_is_dead_when_its_recorders_have_ended_and_no_step_comes():
    long_ago = time.time() - 3600
    log = attempt(0, long_ago - 100, None)
    assert written(log, long_ago) == ([2], 0)
    assert written(log, long_ago, ended=False) == ([6], 4), "suspended, perhaps"
    just_now = time.time() - 5
    assert written(attempt(0, just_now - 100, None), just_now) == ([6], 4), "its recorder alone was killed, perhaps"


def test_while_the_next_attempt_starts_up_the_steps_of_the_dead_one_are_lost():
    now = time.time()
    log = attempt(0, now - 200, now - 100, outcome="failed") + attempt(1, now - 50, None)
    assert written(log, now - 110, ended=False) == ([2, 0], 0)


@pytest.mark.parametrize("text", ["", '{"step": 7, "ti'])
def test_an_attempt_whose_step_log_is_empty_or_cut_off_has_no_steps(tmp_path, text):
    long_ago = time.time() - 3600
    write_steps(tmp_path, 0, 0, range(1, 7), long_ago - 10)
    (tmp_path / "1-0.jsonl").write_text(text)
    log = attempt(0, long_ago - 20, long_ago, outcome="failed") + attempt(1, long_ago + 10, None)
    run = RunFiles("run", attempts=log, steps=steps.read(tmp_path, []), checkpoints=[2])
    attempts = training.attempts_of(run, [])
    assert [int(one.kept.sum()) for one in attempts] == [2, 0]
    found = training.summarise(run, attempts, [], [], {})
    assert (found["steps_kept"], found["steps_computed"], found["steps_unsaved"]) == (2, 6, 0)


def test_a_run_that_was_shortened_keeps_the_steps_up_to_its_final_weights():
    log = attempt(0, 100.0, 200.0) + attempt(1, 300.0, 310.0)
    assert written(log, 190.0, checkpoints=(3, 6), final_step=3) == ([3, 0], 0)
    assert written(log[:2], 190.0, checkpoints=(3, 6), final_step=6) == ([6], 0)


def test_nodes_are_held_by_every_attempt_that_names_them():
    log = attempt(0, 100.0, 200.0, ranks=2) + [row | {"nodes": ["a", "b"]} for row in attempt(1, 300.0, 350.0, ranks=2)]
    held = training.allotted_s(training.attempts_of(RunFiles("run", attempts=log), []))
    assert held == {"node0": 100, "a": 50, "b": 50}


def test_what_depends_on_energy_says_of_how_much_of_the_gpu_time_it_is():
    gpu = {"energy_j": 3.6e6, "energy_s": 1800.0}
    half = training._energy([gpu], 1.0, {}, 10)
    assert (half["kwh"], half["recorded_pct"], half["joule_per_clip"]) == (1, 50, None)
    whole = training._energy([gpu, gpu], 1.0, {}, 10)
    assert (whole["recorded_pct"], whole["joule_per_clip"]) == (100, 7.2e5)


def test_energy_of_which_a_last_batch_is_not_yet_written_is_whole():
    gpus = [{"energy_j": 1.8e6, "energy_s": 291.0}] * 2
    assert training._energy(gpus, 600 / 3600, {}, 10)["recorded_pct"] == 100
    late = training._energy([gpus[0], gpus[0] | {"energy_s": 270.0}], 600 / 3600, {}, 10)
    assert (late["recorded_pct"], late["joule_per_clip"]) == (pytest.approx(93.5), None)


@pytest.mark.parametrize(
    ("ranks", "count", "local_s", "why"),
    [(1, 100, 1.0, "a single rank"), (2, 100, np.nan, training.NOT_TOLD), (2, 30, 1.0, "too few steps to tell"),
     (2, 100, 1.0, None), (2, 0, 1.0, "no step was taken yet")],
)  # fmt: skip
def test_why_slow_ranks_were_not_looked_for_is_said(ranks, count, local_s, why):
    log = Steps(np.arange(count), ranks, {"local_s": np.full((count, ranks), local_s)})
    assert training._slow_ranks_missing([Attempt(0, 0.0, 1.0, ranks, 0, log)]) == why


def test_many_ranks_that_took_no_step_are_not_a_single_one():
    assert training._slow_ranks_missing([Attempt(0, 0.0, 1.0, 8, 8, Steps())]) == "no step was taken yet"
    assert training._slow_ranks_missing([]) == "no step was taken yet"
