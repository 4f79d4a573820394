"""Videos for the metrics, in pose time: generated ones, windows of held-out clips, and training clips."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from brickreel.config import RunData
from brickreel.evaluation.holds import holds, pose_indices
from brickreel.evaluation.memorisation import thumbnails
from brickreel.films import video
from brickreel.training import showing

Frames = NDArray[np.uint8]

# Fewer poses say nothing about drift, smoothness or flicker.
LEAST_POSES = 4
# Rows that thumbnails of training clips are made from: decoding larger pictures would only take longer.
THUMBNAIL_HEIGHT = 96


class Shown(NamedTuple):
    """One video with what is needed to group it."""

    frames: Frames
    """As played, holds included: [T, H, W, 3]."""
    poses: Frames
    """One frame per pose."""
    asked: Sequence[int]
    """Hold lengths that were asked for."""
    row: Mapping[str, Any]
    """The sample's row, or the held-out clip's."""


def of_sample(row: Mapping[str, Any], data: RunData) -> Shown:
    """Read a generated video.

    A run that was trained on poses makes one pose per written hold. One that was trained on frames makes holds of its
    own: they are found and collapsed. Raises ValueError when the file cannot be read.
    """
    frames = video.read(row["path"])
    asked = list(row["holds"])
    if sum(asked) != len(frames):
        raise ValueError(f"{row['path']} has {len(frames)} frames, its table says {sum(asked)}")
    found = asked if data.time == "poses" else holds(frames)
    return Shown(frames, frames[pose_indices(found)], asked, row)


def of_samples(rows: Sequence[Mapping[str, Any]], data: RunData, troubles: list[str]) -> Iterator[Shown]:
    """Generated videos, one after the other; one that cannot be read is noted, not raised."""
    for row in rows:
        try:
            yield of_sample(row, data)
        except (ValueError, OSError) as error:
            troubles.append(str(error))


def of_clip(row: Mapping[str, Any], stride: int = 1, height: int | None = None) -> Frames:
    """Every `stride`-th pose of a clip of the dataset. Raises ValueError when the file cannot be read."""
    return video.read(row["path"], _poses(row, stride).tolist(), height)


def _poses(row: Mapping[str, Any], stride: int) -> NDArray[np.int64]:
    """Frames of the clip's file that show its poses."""
    units = np.arange(len(row["holds"]) if row["holds"] else row["frames"])
    return showing.file_frames(units, "poses", row["holds"], bool(row["in_poses"]))[::stride]


def has_window(stride: int) -> pc.Expression:
    """Of rows of the cut index: whether `windows` can show the clip."""
    return pc.coalesce(pc.list_value_length(pc.field("holds")), pc.field("frames")) > (LEAST_POSES - 1) * stride


def windows(
    clips: Sequence[Mapping[str, Any]],
    poses: int,
    size: tuple[int, int],
    stride: int,
    most: int,
    troubles: list[str],
) -> Iterator[Shown]:
    """Up to `most` windows of `poses` poses, scaled and cropped to `size`, in turn from every clip.

    A clip that is shorter gives one window, if it has `LEAST_POSES`; one that cannot be read is noted in `troubles`.
    """
    starts = {
        index: range(0, max(1, len(_poses(row, stride)) - poses + 1), poses)
        for index, row in enumerate(clips)
        if len(_poses(row, stride)) >= LEAST_POSES
    }
    turns = itertools.zip_longest(*([(index, start) for start in of] for index, of in starts.items()))
    chosen = sorted([place for turn in turns for place in turn if place is not None][:most])
    for index, places in itertools.groupby(chosen, key=lambda place: place[0]):
        try:
            whole = of_clip(clips[index], stride)
        except (ValueError, OSError) as error:
            troubles.append(str(error))
            continue
        for _, start in places:
            shown = _fitted(whole[start : start + poses], size)
            yield Shown(shown, shown, [1] * len(shown), clips[index])


def _fitted(frames: Frames, size: tuple[int, int]) -> Frames:
    """Scaled and cropped as training shows them."""
    pixels = showing.fill_and_crop(showing.to_tensor(frames), *size)
    scaled = ((pixels + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1)
    return np.ascontiguousarray(scaled.numpy().astype(np.uint8))


def thumbnails_of(
    clips: Sequence[Mapping[str, Any]], stride: int, size: tuple[int, int], troubles: list[str]
) -> Iterator[tuple[Mapping[str, Any], NDArray[np.float32]]]:
    """Training clips with a thumbnail per pose, cropped to the samples' shape; troubles are noted, not raised."""
    height = THUMBNAIL_HEIGHT
    target = height, max(1, round(height * size[1] / size[0]))
    for row in clips:
        try:
            yield row, thumbnails(_fitted(of_clip(row, stride, height), target))
        except (ValueError, OSError) as error:
            troubles.append(str(error))


def pictures_of(row: Mapping[str, Any], wanted: Sequence[int], stride: int, size: tuple[int, int]) -> Frames:
    """Poses of a clip, scaled and cropped as the samples are, for people to look at."""
    places = _poses(row, stride)[list(wanted)]
    return _fitted(video.read(row["path"], places.tolist()), size)
