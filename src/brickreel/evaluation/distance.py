"""Distances between two sets of feature vectors."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]


def frechet(first: Features, second: Features) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of vectors [N, D] (Heusel et al. 2017, eq. 6).

    The cross term, trace (S1 S2)^(1/2), is the sum of the singular values of X1 X2^T with X the centred vectors over
    the root of n - 1: no matrix root, and few vectors cost little. Biased upwards when vectors are few: compare only
    at equal counts. Raises ValueError below two vectors on a side.
    """
    a, b = _centred(first), _centred(second)
    offset = np.asarray(first, np.float64).mean(axis=0) - np.asarray(second, np.float64).mean(axis=0)
    cross = np.linalg.svd(a @ b.T if min(len(a), len(b)) < a.shape[1] else _root(a) @ _root(b).T, compute_uv=False)
    return float(max(0.0, offset @ offset + (a**2).sum() + (b**2).sum() - 2 * cross.sum()))


def kernel(first: Sequence[Features], second: Sequence[Features]) -> float:
    """Unbiased squared maximum mean discrepancy with a cubic kernel (KID: Binkowski et al. 2018, section 4).

    Takes the vectors [n, D] of each video. Those of one video are alike, so that only pairs of two videos tell how
    alike the videos of a set are: with the others the distance would fall as videos become more. Usable with few
    videos, and below 0 when the sets are closer than chance. Raises ValueError below two videos on a side.
    """
    if len(first) < 2 or len(second) < 2:
        raise ValueError("at least two videos are needed on each side")
    a, b = (np.concatenate(side).astype(np.float64) for side in (first, second))
    between = _cubed(a @ b.T / a.shape[1] + 1).mean()
    return float(_alike(a, first) + _alike(b, second) - 2 * between)


def _alike(vectors: NDArray[np.float64], videos: Sequence[Features]) -> float:
    """The kernel's mean over pairs of vectors of two videos."""
    found = _cubed(vectors @ vectors.T / vectors.shape[1] + 1)
    total, pairs, start = found.sum(), found.size, 0
    for video in videos:
        own = found[start : start + len(video), start : start + len(video)]
        total, pairs, start = total - own.sum(), pairs - own.size, start + len(video)
    return float(total / pairs)


def _cubed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Several times as fast as numpy's power."""
    return values * values * values


def cosine(first: Features, second: Features) -> float:
    """1 - cosine of two vectors: 0 in the same direction, 2 in the opposite one."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return float(1 - a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def _centred(vectors: Features) -> NDArray[np.float64]:
    values = np.asarray(vectors, np.float64)
    if len(values) < 2:
        raise ValueError("at least two feature vectors are needed on each side")
    return (values - values.mean(axis=0)) / np.sqrt(len(values) - 1)


def _root(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """R with R^T R = X^T X and no more rows than columns."""
    return np.asarray(np.linalg.qr(centred, mode="r"))
