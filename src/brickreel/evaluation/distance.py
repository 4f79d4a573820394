"""Distances between two sets of feature vectors, and what they are without each part of the first."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]
Double = NDArray[np.float64]
Group = Sequence[Features]
"""The vectors [n, D] of each video of a group."""


class LeftOut(NamedTuple):
    """A distance, and what it is without each group [G]; NaN where a side has less than two members."""

    value: float
    without: Double


def frechet(first: Features, second: Features) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of vectors [N, D] (Heusel et al. 2017, eq. 6).

    Biased upwards when vectors are few: compare only at equal counts. Raises ValueError below two vectors on a side.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError("at least two feature vectors are needed on each side")
    return _frechet(_fitted(_told(first)), _fitted(_told(second)))


def frechet_left_out(groups: Sequence[Group], references: Sequence[Group]) -> LeftOut:
    """Mean Frechet distance of the groups' vectors to each reference, and the same without each group.

    Of a set no more is kept than the triangle of its QR decomposition, so that leaving a group out costs as much with
    many groups as with few.
    """
    parts = [_triangle([_told(np.concatenate(group))]) for group in groups]
    fixed = [_fitted(_told(np.concatenate(reference))) for reference in references]

    def mean(triangle: Double) -> float:
        fitted = _fitted(triangle)
        return float(np.mean([_frechet(fitted, reference) for reference in fixed]))

    without = [mean(rest) for rest in _rests(parts)] if len(parts) > 1 else [np.nan]
    return LeftOut(mean(_triangle(parts)), np.array(without))


class _Gaussian(NamedTuple):
    """Mean [D] and R [r, D] with R^T R the covariance."""

    mean: Double
    root: Double


def _told(vectors: Features) -> Double:
    """[1 X]: R of its QR decomposition holds count, mean and scatter of X, at once and without loss of digits."""
    return np.column_stack([np.ones(len(vectors)), np.asarray(vectors, np.float64)])


def _triangle(parts: Sequence[Double]) -> Double:
    """R of the QR decomposition of all rows together, with no more rows than columns."""
    return np.asarray(np.linalg.qr(np.concatenate(parts), mode="r"))


def _rests(parts: Sequence[Double], others: Sequence[Double] = ()) -> Iterator[Double]:
    """The triangle of all but one, for each: those of a half are added up once for all of the other half."""
    if len(parts) == 1:
        yield _triangle(others)
        return
    middle = len(parts) // 2
    for half, rest in ((parts[:middle], parts[middle:]), (parts[middle:], parts[:middle])):
        yield from _rests(half, [_triangle([*others, *rest])])


def _fitted(rows: Double) -> _Gaussian:
    """Of rows [1 X], or of their triangle. NaN for a single vector."""
    triangle = _triangle([rows])
    # R has its first row and column from the ones: the root of the count, and the mean times it.
    count = round(triangle[0, 0] ** 2)
    root = triangle[1:, 1:] / np.sqrt(count - 1) if count > 1 else np.full((1, triangle.shape[1] - 1), np.nan)
    return _Gaussian(triangle[0, 1:] / triangle[0, 0], root)


def _frechet(first: _Gaussian, second: _Gaussian) -> float:
    """The cross term, trace (S1 S2)^(1/2), is the sum of the singular values of R1 R2^T: no root of a matrix."""
    a, b = first.root, second.root
    if np.isnan(a).any() or np.isnan(b).any():
        return float("nan")
    offset = first.mean - second.mean
    cross = np.linalg.svd(a @ b.T, compute_uv=False)
    return float(max(0.0, offset @ offset + (a**2).sum() + (b**2).sum() - 2 * cross.sum()))


def kernel(first: Sequence[Features], second: Sequence[Features]) -> float:
    """Unbiased squared maximum mean discrepancy with a cubic kernel (KID: Binkowski et al. 2018, section 4).

    Takes the vectors [n, D] of each video. Those of one video are alike, so that only pairs of two videos tell how
    alike the videos of a set are: with the others the distance would fall as videos become more. Usable with few
    videos, and below 0 when the sets are closer than chance. Raises ValueError below two videos on a side.
    """
    if len(first) < 2 or len(second) < 2:
        raise ValueError("at least two videos are needed on each side")
    return kernel_left_out([first], [second]).value


def kernel_left_out(groups: Sequence[Group], references: Sequence[Group]) -> LeftOut:
    """Mean kernel distance of the groups' videos to each reference, and the same without each group.

    The kernel is computed once for each pair of vectors, and summed over pairs of groups: what a group adds can be
    taken away again.
    """
    videos = _but_for_each(np.array([len(group) for group in groups]))
    enough = (videos >= 2) & all(len(reference) >= 2 for reference in references)
    if not enough[0]:
        return LeftOut(np.nan, np.full(len(groups), np.nan))
    vectors = _but_for_each(np.array([sum(map(len, group)) for group in groups]))
    found = np.full(len(groups) + 1, np.nan)
    alike = _without_each(_sums(groups, groups, alike=True))[enough] / _without_each(_pairs(groups))[enough]
    distances = []
    for reference in references:
        other = _sums([reference], [reference], alike=True) / _pairs([reference])
        between = _but_for_each(_sums(groups, [reference])[:, 0]) / sum(map(len, reference))
        distances.append(alike + other[0, 0] - 2 * between[enough] / vectors[enough])
    found[enough] = np.mean(distances, axis=0)
    return LeftOut(float(found[0]), found[1:])


def _sums(rows: Sequence[Group], columns: Sequence[Group], alike: bool = False) -> Double:
    """The kernel's sum over pairs of vectors of two groups [rows, columns]. `alike`: rows and columns are the same
    videos, and no pair is within one."""
    right = np.concatenate([video for group in columns for video in group]).astype(np.float64)
    starts = np.cumsum([0, *(sum(map(len, group)) for group in columns[:-1])])
    found, place = [], 0
    for group in rows:
        total = np.zeros(len(columns))
        for video in group:
            values = _cubed(video.astype(np.float64) @ right.T / right.shape[1] + 1)
            if alike:
                values[:, place : place + len(video)] = 0
            place += len(video)
            total += np.add.reduceat(values.sum(axis=0), starts)
        found.append(total)
    return np.array(found)


def _pairs(groups: Sequence[Group]) -> Double:
    """How many pairs of vectors there are, none within one video [G, G]."""
    sizes = np.array([sum(map(len, group)) for group in groups], np.float64)
    return np.outer(sizes, sizes) - np.diag([float(sum(len(video) ** 2 for video in group)) for group in groups])


def _but_for_each(values: NDArray[Any]) -> NDArray[Any]:
    """The total of values [G], and then what it is without each."""
    return np.append(values.sum(), values.sum() - values)


def _without_each(sums: Double) -> Double:
    """The total of a symmetric matrix [G, G], and then what it is without each row and its column."""
    total = sums.sum()
    return np.append(total, total - 2 * sums.sum(axis=1) + np.diag(sums))


def _cubed(values: Double) -> Double:
    """Several times as fast as numpy's power."""
    return values * values * values


def cosine(first: Features, second: Features) -> float:
    """1 - cosine of two vectors: 0 in the same direction, 2 in the opposite one."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return float(1 - a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
