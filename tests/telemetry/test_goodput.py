"""Where the time went, against answers computed by hand."""

import pytest

from brickreel.telemetry import goodput, steps
from telemetry.logs import attempt, write_steps


def attempts(folder, log, seen=None, saved_step=None):
    return goodput.attempts_of(log, steps.read(folder, []), seen, saved_step)


def test_every_second_belongs_to_one_cause(tmp_path):
    # 100 s: 10 to start, 3 in the first step (2 over the median), 8 steps of 1 s with 0.1 s of data, 0.05 s of
    # communication, one checkpoint of 2 s and one reading of 3 s on top, a gap of 4 s, then the tail.
    numbers = list(range(1, 11))
    whole = [3.0, *[1.0] * 7, 3.0, 4.0]
    times = [10 + 3 + place for place in range(8)]
    times += [times[-1] + 4 + 3, times[-1] + 4 + 3 + 4]
    write_steps(
        tmp_path,
        0,
        0,
        numbers,
        step_s=whole,
        time_s=[float(time) for time in times],
        data_s=0.1,
        comm_s=0.05,
        checkpoint_s=[0.0] * 8 + [2.0, 0.0],
        gauge_s=[0.0] * 9 + [3.0],
    )
    (one,) = attempts(tmp_path, attempt(0, 0.0, 100.0))
    seconds = goodput.causes(one)
    assert seconds["init"] == pytest.approx(10)
    assert seconds["compile"] == pytest.approx(2)
    assert seconds["data"] == pytest.approx(1.0)
    assert seconds["comm_exposed"] == pytest.approx(0.5)
    assert seconds["checkpoint"] == pytest.approx(2)
    assert seconds["eval"] == pytest.approx(3)
    assert seconds["unknown"] == pytest.approx(4)
    assert seconds["tail"] == pytest.approx(100 - 31)
    assert seconds["goodput"] == pytest.approx(17 - 2 - 1 - 0.5 - 2 - 3)
    assert sum(seconds.values()) == pytest.approx(100)
    assert sum(goodput.shares([one]).values()) == pytest.approx(100)


def test_steps_computed_again_are_lost_in_the_earlier_attempt(tmp_path):
    write_steps(tmp_path, 0, 0, [1, 2, 3, 4], start_s=0.0)
    write_steps(tmp_path, 1, 0, [3, 4, 5], start_s=100.0)
    first, second = attempts(tmp_path, attempt(0, 0.0, 4.0) + attempt(1, 100.0, 103.0))
    assert first.kept.tolist() == [True, True, False, False]
    assert second.kept.tolist() == [True, True, True]
    assert goodput.causes(first)["redone"] == pytest.approx(2)
    assert goodput.throughput([first, second])["clips_trained"] == 2 * 5


def test_a_skipped_step_trained_nothing(tmp_path):
    write_steps(tmp_path, 0, 0, [1, 2, 3, 4], skipped=[False, True, False, False])
    (one,) = attempts(tmp_path, attempt(0, 0.0, 4.0))
    seconds = goodput.causes(one)
    assert seconds["skipped"] == pytest.approx(1)
    assert seconds["redone"] == 0, "nothing was computed again"
    assert seconds["goodput"] == pytest.approx(3)


def test_steps_after_the_last_checkpoint_are_lost_with_a_dead_run(tmp_path):
    write_steps(tmp_path, 0, 0, [1, 2, 3, 4])
    write_steps(tmp_path, 1, 0, [4, 5, 6], start_s=10.0)
    log = attempt(0, 0.0, 4.0) + attempt(1, 10.0, 13.0, outcome="failed")
    first, second = attempts(tmp_path, log, saved_step=4)
    assert (first.kept.tolist(), second.kept.tolist()) == ([True, True, True, False], [True, False, False])
    assert goodput.causes(second)["redone"] == pytest.approx(2)
    rates = goodput.throughput([first, second])
    assert rates["clips_trained"] == 2 * 4
    assert rates["clips_per_hour_of_steps"] == pytest.approx(2 * 3600), "as fast as the steps were"
    nothing = attempts(tmp_path, log, saved_step=0)
    assert goodput.throughput(nothing)["clips_per_hour"] == 0
    assert goodput.model_flops(nothing)["tflop_per_s"] == pytest.approx(1)


def test_communication_that_no_backend_could_tell_is_not_measured_and_within_goodput(tmp_path):
    for rank in range(2):
        write_steps(tmp_path, 0, rank, [1, 2], comm_s=None)
        write_steps(tmp_path, 1, rank, [3, 4], start_s=2.0, comm_s=0.25)
    told, untold = attempt(1, 2.0, 4.0, ranks=2), attempt(0, 0.0, 2.0, ranks=2)
    both = attempts(tmp_path, untold + told)
    assert goodput.shares(both[1:])["comm_exposed"] == pytest.approx(25)
    for some in (both[:1], both):
        shares = goodput.shares(some)
        assert shares["comm_exposed"] is None
        assert shares["goodput"] == pytest.approx(100)


def test_a_single_rank_has_no_communication_to_measure(tmp_path):
    write_steps(tmp_path, 0, 0, [1, 2], comm_s=None)
    assert goodput.shares(attempts(tmp_path, attempt(0, 0.0, 2.0)))["comm_exposed"] == 0


def test_an_attempt_weighs_as_much_as_it_had_gpus(tmp_path):
    write_steps(tmp_path, 0, 0, [1, 2, 3], start_s=0.0)
    write_steps(tmp_path, 1, 0, [4, 5, 6], start_s=20.0)
    log = attempt(0, 0.0, 3.0, gpus=8) + attempt(1, 10.0, 23.0, gpus=4)
    shares = goodput.shares(attempts(tmp_path, log))
    assert shares["goodput"] == pytest.approx(100 * (3 * 8 + 3 * 4) / (3 * 8 + 13 * 4))
    assert shares["init"] == pytest.approx(100 * (10 * 4) / (3 * 8 + 13 * 4))


def test_an_attempt_that_was_cut_off_lasts_until_its_last_sign_of_life(tmp_path):
    write_steps(tmp_path, 0, 0, [1, 2], start_s=0.0)
    (one,) = attempts(tmp_path, attempt(0, 0.0, None), {0: (0.0, 7.0)})
    assert one.outcome is None
    assert one.length_s == 7
    assert goodput.causes(one)["tail"] == pytest.approx(5)


def test_what_ran_before_the_first_row_and_after_the_last_one_was_allocated_too(tmp_path):
    """Imports, meeting and the quick check come before an attempt's first row."""
    write_steps(tmp_path, 0, 0, [1, 2], start_s=100.0)
    (one,) = attempts(tmp_path, attempt(0, 90.0, 103.0), {0: (40.0, 105.0)})
    assert (one.start_s, one.end_s) == (40, 105)
    seconds = goodput.causes(one)
    assert seconds["init"] == pytest.approx(60)
    assert seconds["tail"] == pytest.approx(3)
    assert sum(seconds.values()) == pytest.approx(65)


def test_an_attempt_without_steps_only_started_up(tmp_path):
    (one,) = attempts(tmp_path, attempt(0, 0.0, 50.0))
    assert goodput.causes(one)["init"] == 50


def test_steps_without_an_attempts_log_are_an_attempt(tmp_path):
    write_steps(tmp_path, 0, 0, [1, 2], start_s=10.0)
    (one,) = attempts(tmp_path, [])
    assert (one.start_s, one.end_s) == (pytest.approx(10), pytest.approx(12))


def test_clocks_that_disagree_do_not_make_more_than_all_of_the_time(tmp_path):
    write_steps(tmp_path, 0, 0, [1, 2, 3, 4], step_s=10.0, time_s=[10.0, 11.0, 12.0, 13.0])
    (one,) = attempts(tmp_path, attempt(0, 0.0, 13.0))
    assert sum(goodput.causes(one).values()) == pytest.approx(13)


def test_data_wait_is_that_of_the_rank_that_waited_longest(tmp_path):
    write_steps(tmp_path, 0, 0, [1, 2], data_s=[0.2, 0.0])
    write_steps(tmp_path, 0, 1, [1, 2], data_s=[0.0, 0.4])
    assert goodput.data_wait_pct(attempts(tmp_path, attempt(0, 0.0, 2.0, ranks=2))) == pytest.approx(30)


def test_communication_that_only_the_fast_ranks_see_is_waiting_and_not_exposed(tmp_path):
    write_steps(tmp_path, 0, 0, [1, 2], comm_s=0.5)
    write_steps(tmp_path, 0, 1, [1, 2], comm_s=0.1)
    (one,) = attempts(tmp_path, attempt(0, 0.0, 2.0, ranks=2))
    assert goodput.causes(one)["comm_exposed"] == pytest.approx(0.2)


def test_throughput_counts_clips_of_all_ranks(tmp_path):
    for rank in range(2):
        write_steps(tmp_path, 0, rank, list(range(1, 11)), samples=3)
    log = attempt(0, -10.0, 10.0, ranks=2, gpus=2)
    rates = goodput.throughput(attempts(tmp_path, log))
    assert rates["clips_trained"] == 60
    assert rates["clips_per_hour"] == pytest.approx(60 / (20 / 3600))
    assert rates["clips_per_hour_of_steps"] == pytest.approx(60 / (10 / 3600))
    assert rates["clips_per_gpu_hour"] == pytest.approx(60 / (2 * 20 / 3600))


def test_flops_are_those_of_all_ranks_over_the_time_of_steps(tmp_path):
    for rank in range(2):
        write_steps(tmp_path, 0, rank, [1, 2, 3, 4], flops=5e12)
    flops = goodput.model_flops(attempts(tmp_path, attempt(0, 0.0, 100.0, ranks=2, gpus=2)))
    assert flops["model_flops"] == pytest.approx(40e12)
    assert flops["tflop_per_s"] == pytest.approx(10)
    assert flops["tflop_per_s_per_gpu"] == pytest.approx(5)


def test_flops_that_were_not_logged_are_not_zero(tmp_path):
    write_steps(tmp_path, 0, 0, [1, 2], flops=None)
    assert goodput.model_flops(attempts(tmp_path, attempt(0, 0.0, 2.0)))["model_flops"] is None


def test_nothing_allocated_has_no_shares():
    assert goodput.shares([]) is None
