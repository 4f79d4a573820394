"""The metrics as a table: what each is called, its unit, which way is better, and how one video is measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from brickreel.evaluation import features, holds, metrics
from brickreel.evaluation.features import Features
from brickreel.evaluation.poses import Shown

Better = Literal["lower", "higher", "near held-out"]


class Metric(NamedTuple):
    """One row of the table."""

    name: str
    unit: str
    better: Better
    least: float = 0.0
    """The smallest value that is possible; no interval goes below."""
    most: float = math.inf


OF_VIDEOS: tuple[tuple[Metric, Callable[[Shown], float]], ...] = (
    (
        Metric("hold_distance", "frames", "lower"),
        lambda shown: holds.histogram_distance(holds.holds(shown.frames), shown.asked),
    ),
    (Metric("flicker_between", "levels", "near held-out"), lambda shown: metrics.flicker_between(shown.poses)),
    (Metric("flicker_within", "levels", "lower"), lambda shown: metrics.flicker_within(shown.frames, [*shown.asked])),
    (Metric("smoothness", "1 is perfect", "higher", most=1), lambda shown: metrics.smoothness(shown.poses)),
    (Metric("motion", "% of the diagonal per pose", "near held-out"), lambda shown: metrics.motion(shown.poses)),
    (Metric("noise", "levels", "near held-out"), lambda shown: metrics.noise(shown.poses)),
    (Metric("sharpness", "gradient per contrast", "near held-out"), lambda shown: metrics.sharpness(shown.poses)),
)
DRIFT = Metric("drift", "1 - cosine", "near held-out", most=2)
CONSISTENCY = Metric("subject_consistency", "cosine", "near held-out", -1, 1)
AGREEMENT = Metric("prompt_agreement", "cosine", "higher", -1, 1)
NEAREST = Metric("nearest_training_clip", "0 is a copy, 1.4 unrelated", "near held-out", most=2)
COPIES = Metric("copies", "share of the videos", "near held-out", most=1)
FRECHET = Metric("frechet_distance", "of features per pose", "lower")
# Without bias, hence below 0 where sets are closer than chance.
KERNEL = Metric("kernel_distance", "of features per pose", "lower", -math.inf)

Measured = Mapping[str, "float | str"]
"""Metric -> value, or the reason why there is none."""


def of_video(shown: Shown) -> dict[str, float | str]:
    """Everything that needs no network and no other video."""
    found: dict[str, float | str] = {}
    for metric, measure in OF_VIDEOS:
        found[metric.name] = _or_reason(lambda measure=measure: measure(shown))  # type: ignore[misc]
    return found


def drift(vectors: Features) -> float | str:
    """Between the first and the last quarter of a video's poses."""
    return _or_reason(lambda: features.drift(vectors))


def consistency(vectors: Features) -> float | str:
    """Of what a picture network sees in pose after pose."""
    return _or_reason(lambda: features.consistency(vectors))


def _or_reason(measure: Callable[[], float]) -> float | str:
    try:
        return measure()
    except ValueError as error:
        return str(error)


def common_reason(values: Sequence[float | str]) -> str | None:
    """Why some of these could not be measured; None when all were."""
    reasons = [value for value in values if isinstance(value, str)]
    return f"{len(reasons)} of {len(values)} videos: {reasons[0]}" if reasons else None
