import numpy as np
import pytest
from scipy import stats

from brickreel.evaluation import statistics


def test_jackknife_of_a_mean_is_students_interval():
    values = [1.0, 4.0, 2.0, 8.0, 5.0]
    got = statistics.mean_of_groups([[value] for value in values])
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert got.value == pytest.approx(4)
    assert (got.low, got.high) == pytest.approx((low, high))
    assert got.n == 5


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        centre = rng.normal(size=4)
        groups = [list(rng.normal(c, 0.2, 3)) for c in centre]
        got = statistics.mean_of_groups(groups)
        covered += got.low <= 0 <= got.high
    assert covered / 1000 == pytest.approx(0.95, abs=0.03)


def test_one_group_has_a_value_and_says_why_it_has_no_interval():
    got = statistics.mean_of_groups([[1.0, 3.0], []])
    assert (got.value, got.low, got.high) == (2, None, None)
    assert "at least two" in got.reason


def test_groups_that_agree_exactly_have_no_interval_rather_than_one_of_no_width():
    got = statistics.mean_of_groups([[0.0, 0.0], [0.0], [0.0]])
    assert (got.value, got.low, got.high, got.n) == (0, None, None, 3)
    assert "all 3 groups have the same value" in got.reason


def test_no_interval_leaves_what_is_possible():
    wide = statistics.mean_of_groups([[0.0], [0.0], [1.0]])
    assert wide.low < 0
    assert wide.high > 1
    cut = statistics.within(wide, 0, 1)
    assert (cut.value, cut.low, cut.high) == (wide.value, 0, 1)
    without = statistics.mean_of_groups([[1.0]])
    assert statistics.within(without, 0, 0.5) == without


def test_nothing_and_nan_are_not_measured():
    assert statistics.mean_of_groups([]).reason.startswith("not measured")
    assert statistics.mean_of_groups([[float("nan")], [1.0]]).value is None


def test_spearman_finds_rank_agreement_and_an_interval_that_holds_it():
    x = list(range(12))
    y = [0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10]
    got = statistics.spearman(x, y)
    assert got.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert got.low < got.value < got.high <= 1
    assert statistics.spearman(x, [-value for value in y]).value == pytest.approx(-got.value)


def test_spearman_of_three_checkpoints_or_of_a_constant_is_not_measured():
    assert "at least 4" in statistics.spearman([1, 2, 3], [1, 2, 3]).reason
    assert "vary" in statistics.spearman([1, 2, 3, 4], [5, 5, 5, 5]).reason
    assert "agree perfectly" in statistics.spearman([1, 2, 3, 4], [1, 2, 3, 4]).reason
