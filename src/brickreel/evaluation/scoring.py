"""From videos to rows of scores.json: every metric of every set of videos, with its interval or the reason for none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from brickreel.config import Evaluate
from brickreel.evaluation import distance, features, measures, memorisation, statistics
from brickreel.evaluation.features import Features
from brickreel.evaluation.measures import Metric
from brickreel.evaluation.memorisation import Nearest
from brickreel.evaluation.poses import Shown
from brickreel.evaluation.statistics import Estimate, not_measured

# Videos that are measured together, until they are that many or that large as frames: bounds memory.
VIDEOS_AT_ONCE = 64
BYTES_AT_ONCE = 1 << 30


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
    """Measures videos with the networks that the settings name; one that is missing is a reason, not a failure.

    All networks are on one device, and whatever one Scorer measured may be compared.
    """

    def __init__(self, settings: Evaluate, library: Library, device: torch.device | None = None) -> None:
        self.settings, self.library = settings, library
        self.device = device or _own_device()
        self.troubles: dict[str, str] = {}
        self.network = self._network()
        self.subject = self._optional("dinov2", features.PictureModel)
        self.agreement = self._optional("clip", features.ClipModel)

    def _network(self) -> Callable[[Sequence[features.Frames]], list[Features]] | None:
        if self.settings.features == "transnetv2":
            return partial(features.transnetv2, device=self.device)
        kind = features.PictureModel if self.settings.features == "dinov2" else features.VideoModel
        model = self._optional(self.settings.features, kind)
        return model.features if model else None

    def _optional(self, name: str, kind: Callable[[Path, torch.device], Any]) -> Any:
        folder = getattr(self.settings, name)
        if folder is None:
            self.troubles[name] = f"evaluate.{name} names no folder with weights"
            return None
        try:
            return kind(folder, self.device)
        except ValueError as error:
            self.troubles[name] = f"evaluate.{name}: {error}"
            return None

    def measure(self, videos: Sequence[Shown]) -> list[Measured]:
        """Every metric of one video at a time. The videos may be forgotten afterwards."""
        poses = [shown.poses for shown in videos]
        vectors = self.network(poses) if self.network else [None] * len(videos)
        told = zip(videos, vectors, self._consistencies(poses), self._agreements(videos), strict=True)
        return [self._measure(*one) for one in told]

    def _measure(
        self, shown: Shown, vectors: Features | None, consistency: float | str, agreement: float | str
    ) -> Measured:
        values = measures.of_video(shown)
        values[measures.DRIFT.name] = self._drift(vectors)
        values[measures.CONSISTENCY.name] = consistency
        values[measures.AGREEMENT.name] = agreement
        found = Measured(shown.row, values, vectors, poses=len(shown.poses))
        self._look_for_copy(shown, found)
        return found

    def _drift(self, vectors: Features | None) -> float | str:
        if vectors is None:
            return self.troubles.get(self.settings.features, "")
        if self.settings.features == "videomae":
            return "videomae sees a video as a whole, and drift is between its poses: use transnetv2 or dinov2"
        return measures.drift(vectors)

    def _consistencies(self, poses: Sequence[features.Frames]) -> list[float | str]:
        if trouble := self.troubles.get("dinov2"):
            return [trouble] * len(poses)
        return [measures.consistency(vectors) for vectors in self.subject.features(poses)]

    def _agreements(self, videos: Sequence[Shown]) -> list[float | str]:
        if trouble := self.troubles.get("clip"):
            return [trouble] * len(videos)
        texts = [shown.row.get("prompt") or shown.row.get("text") for shown in videos]
        told = [(shown.poses, text) for shown, text in zip(videos, texts, strict=True) if text]
        found = iter(self.agreement.agreements([poses for poses, _ in told], [text for _, text in told]))
        return [next(found) if text else "a clip without a caption" for text in texts]

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


def _own_device() -> torch.device:
    """This process's GPU where there is one, as the other stages choose it."""
    if not torch.cuda.is_available():
        return features.CPU
    # Brings diffusers along, which takes seconds.
    from brickreel.training.encoding import choose_device

    return choose_device("auto")


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
    if not grouped:
        return not_measured("there is nothing to measure")
    left_out = distance.kernel_left_out if metric is measures.KERNEL else distance.frechet_left_out
    found = left_out([_vectors(group) for group in grouped], [_vectors(half) for half in halves if half])
    return statistics.of_left_out(found.value, found.without.tolist())


def _vectors(videos: Sequence[Measured]) -> list[Features]:
    """Those of each video; those of the windows of one clip together."""
    found: dict[Any, list[Features]] = {}
    for number, one in enumerate(videos):
        if one.vectors is not None:
            found.setdefault(one.row.get("clip_id", number), []).append(one.vectors)
    return [np.concatenate(vectors) for vectors in found.values()]


def kin(windows: Sequence[Measured]) -> str:
    """What held-out windows are alike in: the film where there are several, else the clip."""
    return "film_id" if len(groups(windows, ["film_id"])) > 1 else "clip_id"


def halves(windows: Sequence[Measured]) -> list[list[Measured]]:
    """Held-out windows in two halves, no film in both where they can be about as large so, else no clip in both.

    One half where there is one clip only.
    """
    if kin(windows) == "film_id":
        sides: list[list[Measured]] = [[], []]
        # The largest first, each to the smaller side, so that they become about as large.
        for film in sorted(groups(windows, ["film_id"]), key=len, reverse=True):
            min(sides, key=len).extend(film)
        small, large = sorted(len(groups(side, ["clip_id"])) for side in sides)
        # Of a half of few clips a distance is mostly noise, and counts as much as that of the other.
        if small > 1 and large <= 2 * small:
            return sides
    clips = groups(windows, ["clip_id"])
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
    found = [row(about, metric, of_values(metric, groups(windows, [kin(windows)])), len(windows)) for metric in ALL]
    sides = halves(windows)
    films = [{one.row.get("film_id") for one in side} for side in sides]
    alike_in = "clip_id" if len(sides) < 2 or films[0] & films[1] else "film_id"
    if len(sides) < 2:
        reason = no_features or f"{'one' if windows else 'no'} held-out clip, at least two are needed"
        return found + [row(about, metric, not_measured(reason), len(windows)) for metric in SETS]
    for metric in SETS:
        estimate = of_sets(metric, groups(sides[0], [alike_in]), sides[1:], no_features)
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
