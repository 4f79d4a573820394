"""From videos to rows of scores.json: every metric of every set of videos, with its interval or the reason for none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brickreel.config import Evaluate
from brickreel.evaluation import distance, features, measures, memorisation, statistics
from brickreel.evaluation.features import Features
from brickreel.evaluation.measures import Metric
from brickreel.evaluation.memorisation import Nearest
from brickreel.evaluation.poses import Shown
from brickreel.evaluation.statistics import Estimate, not_measured

# Videos that are measured together: bounds memory.
VIDEOS_AT_ONCE = 64


@dataclass
class Measured:
    """What is kept of one video after it was measured."""

    row: Mapping[str, Any]
    values: dict[str, float | str]
    vectors: Features | None = None
    """[poses, D] of the feature network."""
    nearest: Nearest | None = None
    poses: int = 0


@dataclass
class Library:
    """Training clips to look for copies of: rows and their thumbnails."""

    rows: list[Mapping[str, Any]] = field(default_factory=list)
    thumbnails: list[NDArray[np.float32]] = field(default_factory=list)


class Scorer:
    """Measures videos with the networks that the settings name; one that is missing is a reason, not a failure."""

    def __init__(self, settings: Evaluate, library: Library) -> None:
        self.settings, self.library = settings, library
        self.troubles: dict[str, str] = {}
        self.network = self._network()
        self.subject = self._optional("dinov2", features.PictureModel)
        self.agreement = self._optional("clip", features.ClipModel)

    def _network(self) -> Callable[[list[features.Frames]], list[Features]] | None:
        if self.settings.features == "transnetv2":
            return features.transnetv2
        kind = features.PictureModel if self.settings.features == "dinov2" else features.VideoModel
        model = self._optional(self.settings.features, kind)
        return model.features if model else None

    def _optional(self, name: str, kind: Callable[[Path], Any]) -> Any:
        folder = getattr(self.settings, name)
        if folder is None:
            self.troubles[name] = f"evaluate.{name} names no folder with weights"
            return None
        try:
            return kind(folder)
        except ValueError as error:
            self.troubles[name] = f"evaluate.{name}: {error}"
            return None

    def measure(self, videos: Sequence[Shown]) -> list[Measured]:
        """Every metric of one video at a time. The videos may be forgotten afterwards."""
        vectors: list[Features | None] = [None] * len(videos)
        if self.network:
            vectors = list(self.network([shown.poses for shown in videos]))
        return [self._measure(shown, vector) for shown, vector in zip(videos, vectors, strict=True)]

    def _measure(self, shown: Shown, vectors: Features | None) -> Measured:
        values = measures.of_video(shown)
        no_features = self.troubles.get(self.settings.features, "")
        values[measures.DRIFT.name] = no_features if vectors is None else measures.drift(vectors)
        values[measures.CONSISTENCY.name] = self.troubles.get("dinov2", "") or measures.consistency(
            self.subject.features([shown.poses])[0]
        )
        values[measures.AGREEMENT.name] = self.troubles.get("clip", "") or self._agreement(shown)
        found = Measured(shown.row, values, vectors, poses=len(shown.poses))
        self._look_for_copy(shown, found)
        return found

    def _agreement(self, shown: Shown) -> float | str:
        text = shown.row.get("prompt") or shown.row.get("text")
        return self.agreement.agreement(shown.poses, text) if text else "a clip without a caption"

    def _look_for_copy(self, shown: Shown, found: Measured) -> None:
        sample, clips = memorisation.thumbnails(shown.poses), self.library.thumbnails
        try:
            found.nearest = memorisation.nearest(sample, clips)
            found.values[measures.NEAREST.name] = found.nearest.distance
            copied = memorisation.is_copy(found.nearest, clips, len(sample))
            found.values[measures.COPIES.name] = float(copied)
        except ValueError as error:
            found.values.setdefault(measures.NEAREST.name, str(error))
            found.values[measures.COPIES.name] = str(error)


def groups(videos: Sequence[Measured], by: Sequence[str]) -> list[list[Measured]]:
    """Videos that are alike stand together: those of one prompt, or of one seed when there is only one prompt."""
    for column in by:
        found: dict[Any, list[Measured]] = {}
        for one in videos:
            found.setdefault(one.row[column], []).append(one)
        if len(found) > 1:
            return list(found.values())
    return [list(videos)] if videos else []


def of_values(metric: Metric, grouped: Sequence[Sequence[Measured]]) -> Estimate:
    """Mean over groups of a metric of single videos."""
    wanted = [[one.values[metric.name] for one in group] for group in grouped]
    flat = [value for group in wanted for value in group]
    numbers = [[value for value in group if not isinstance(value, str)] for group in wanted]
    reason = measures.common_reason(flat)
    if not any(numbers):
        return not_measured(next((str(value) for value in flat), "there is no video"))
    found = statistics.mean_of_groups([group for group in numbers if group])
    return found._replace(reason="; ".join(part for part in (found.reason, reason) if part) or None)


def of_sets(
    metric: Metric, grouped: Sequence[Sequence[Measured]], halves: Sequence[Sequence[Measured]], missing: str | None
) -> Estimate:
    """Distance of a set of videos to held-out ones: the mean over the halves that they were split into."""
    if missing:
        return not_measured(missing)
    if not any(halves):
        return not_measured("there is no held-out clip")
    references = [_vectors(half) for half in halves if half]

    def statistic(chosen: Sequence[Sequence[Measured]]) -> float:
        found = _vectors([one for group in chosen for one in group])
        return float(np.mean([_distance(metric, found, reference) for reference in references]))

    return statistics.jackknife(grouped, statistic)


def _vectors(videos: Sequence[Measured]) -> list[Features]:
    """Those of each video; those of the windows of one clip together."""
    found: dict[Any, list[Features]] = {}
    for number, one in enumerate(videos):
        if one.vectors is not None:
            found.setdefault(one.row.get("clip_id", number), []).append(one.vectors)
    return [np.concatenate(vectors) for vectors in found.values()]


def _distance(metric: Metric, found: Sequence[Features], reference: Sequence[Features]) -> float:
    """NaN where a side is too small."""
    try:
        if metric is measures.KERNEL:
            return distance.kernel(found, reference)
        return distance.frechet(np.concatenate(found), np.concatenate(reference))
    except ValueError:
        return float("nan")


def halves(videos: Sequence[Measured]) -> list[list[Measured]]:
    """Held-out windows in two halves, no clip in both; one half where there is one clip only."""
    clips = groups(videos, ["clip_id"])
    return [[one for clip in clips[side::2] for one in clip] for side in (0, 1) if clips[side::2]]


ALL = (
    *(metric for metric, _ in measures.OF_VIDEOS),
    measures.DRIFT,
    measures.CONSISTENCY,
    measures.AGREEMENT,
    measures.NEAREST,
    measures.COPIES,
)
SETS = (measures.FRECHET, measures.KERNEL)


def rows_of(
    about: Mapping[str, Any],
    videos: Sequence[Measured],
    by: Sequence[str],
    reference: Sequence[Sequence[Measured]],
    no_features: str | None,
) -> list[dict[str, Any]]:
    """All metrics of one set of videos, as rows of scores.json. `about` says which set it is."""
    grouped = groups(videos, by)
    estimates = [(metric, of_values(metric, grouped)) for metric in ALL]
    estimates += [(metric, of_sets(metric, grouped, reference, no_features)) for metric in SETS]
    return [row(about, metric, estimate, len(videos)) for metric, estimate in estimates]


def ceiling(windows: Sequence[Measured], per_set: int, no_features: str | None) -> list[dict[str, Any]]:
    """The same metrics of held-out clips among themselves: one half of them against the other.

    `per_set` is the number of videos in a set of samples: a note says when the halves are smaller or larger, since the
    Frechet distance, unlike the kernel distance, falls as videos become more.
    """
    about = {"step": None, "weights": "held-out", "conditional": True, "length": 1}
    found = [row(about, metric, of_values(metric, groups(windows, ["clip_id"])), len(windows)) for metric in ALL]
    sides = halves(windows)
    if len(sides) < 2:
        reason = no_features or f"{'one' if windows else 'no'} held-out clip, at least two are needed"
        return found + [row(about, metric, not_measured(reason), len(windows)) for metric in SETS]
    for metric in SETS:
        estimate = of_sets(metric, groups(sides[0], ["clip_id"]), sides[1:], no_features)
        if metric is measures.FRECHET and len(sides[0]) != per_set and estimate.value is not None:
            note = f"of {len(sides[0])} clips, the samples' of {per_set}: only kernel_distance can be compared"
            estimate = estimate._replace(reason="; ".join(part for part in (estimate.reason, note) if part))
        found.append(row(about, metric, estimate, len(sides[0])))
    return found


def row(about: Mapping[str, Any], metric: Metric, estimate: Estimate, videos: int) -> dict[str, Any]:
    """One row of scores.json."""
    estimate = statistics.within(estimate, metric.least, metric.most)
    return {
        "name": metric.name,
        **about,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "videos": videos,
        "unit": metric.unit,
        "better": metric.better,
        "reason": estimate.reason,
    }
