"""Values with intervals. Samples of one prompt are alike, so it is prompts that are left out, not videos."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import stats

CONFIDENCE = 0.95

Group = TypeVar("Group")


class Estimate(NamedTuple):
    """A number, its 95 % interval, and how many independent groups stand behind it."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str | None = None
    """Why the value or its interval is missing; None when both are there."""


def within(estimate: Estimate, least: float, most: float) -> Estimate:
    """The estimate with its interval cut to what is possible, such as shares from 0 to 1."""
    if estimate.low is None or estimate.high is None:
        return estimate
    return estimate._replace(low=max(least, estimate.low), high=min(most, estimate.high))


def not_measured(reason: str, n: int = 0) -> Estimate:
    """The estimate of something that could not be measured, with the sentence that says why."""
    return Estimate(None, None, None, n, f"not measured: {reason}")


def jackknife(groups: Sequence[Group], statistic: Callable[[Sequence[Group]], float]) -> Estimate:
    """A statistic of groups with the delete-one-group jackknife interval (Efron & Tibshirani 1993, chapter 11).

    For a mean over groups this is Student's interval. With one group there is a value and no interval.
    """
    if not groups:
        return not_measured("there is nothing to measure")
    whole = range(len(groups)) if len(groups) > 1 else range(0)
    left_out = [statistic([*groups[:index], *groups[index + 1 :]]) for index in whole]
    return of_left_out(float(statistic(groups)), left_out or [math.nan])


def of_left_out(value: float, without: Sequence[float]) -> Estimate:
    """The jackknife of a value and of what it is without each group; what the latter is with one group is no matter."""
    count, left_out = len(without), np.array(without, float)
    if not math.isfinite(value):
        return not_measured("the result is not a finite number", count)
    if count == 1:
        return Estimate(value, None, None, 1, "no interval: one group only, at least two are needed")
    if not np.isfinite(left_out).all():
        return Estimate(value, None, None, count, "no interval: leaving one group out leaves too little to measure")
    if np.ptp(left_out) == 0:
        # Three prompts without a copy do not prove that there are none.
        return Estimate(value, None, None, count, f"no interval: all {count} groups have the same value")
    error = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * error
    return Estimate(value, value - reach, value + reach, count)


def mean_of_groups(groups: Sequence[Sequence[float]]) -> Estimate:
    """Mean of all values, with the interval that comes of leaving out groups; a group of one value does not weigh as
    much as one of sixty."""
    return jackknife([group for group in groups if len(group)], lambda some: float(np.mean(np.concatenate(some))))


def spearman(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Spearman's rank correlation of paired values with the Bonett-Wright interval (Psychometrika 65, 2000).

    Needs four pairs for an interval; with fewer, or when one side is constant, it says so instead.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if math.isfinite(a) and math.isfinite(b)]
    count = len(pairs)
    if count < 4:
        return not_measured(f"{count} pairs, at least 4 are needed", count)
    x, y = np.array(pairs).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return not_measured("one side does not vary", count)
    rho = float(stats.spearmanr(x, y).statistic)
    if abs(rho) >= 1 - 1e-12:
        return Estimate(rho, None, None, count, "no interval: the ranks agree perfectly")
    reach = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * math.sqrt((1 + rho**2 / 2) / (count - 3))
    centre = math.atanh(rho)
    return Estimate(rho, math.tanh(centre - reach), math.tanh(centre + reach), count)
