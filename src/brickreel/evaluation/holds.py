"""Which frames of a finished video show a new pose, and how far its holds are from the asked cadence."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import stats

Frames = NDArray[np.uint8]

# Differences below this many grey levels (mean over the most changed block of the picture) are compression and
# camera noise whatever the rest of the video does.
FLOOR = 2.0
# A step is a new pose when it changes the picture by at least this share of the video's own typical pose change.
SHARE = 0.2
BLOCKS = 8


def changes(frames: Frames) -> NDArray[np.float64]:
    """How much each frame differs from the one before: [T - 1], in grey levels of 8 bits.

    The mean over the most changed of 8 x 8 blocks, after the frame's own mean light is taken out: a small moving
    region counts, a flicker of the lamps does not.
    """
    small = [cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (0, 0), 1.0) for frame in frames]
    level = np.array([picture.mean() for picture in small])
    light = np.stack(small).astype(np.float64) * (level.mean() / np.maximum(level, 1.0))[:, None, None]
    differences = np.abs(np.diff(light, axis=0))
    side = min(BLOCKS, *differences.shape[1:])
    rows, columns = (np.array_split(np.arange(size), side) for size in differences.shape[1:])
    blocks = [[differences[:, r[0] : r[-1] + 1, c[0] : c[-1] + 1].mean(axis=(1, 2)) for c in columns] for r in rows]
    return np.array(blocks).max(axis=(0, 1))


def holds(frames: Frames) -> list[int]:
    """Hold lengths, in frames, of the poses that a video [T, H, W, 3] shows.

    The threshold is relative to the video's own typical pose change, the upper quartile of its steps; a video in
    which nothing moves is one hold.
    """
    if len(frames) < 2:
        return [1] * len(frames)
    steps = changes(frames)
    threshold = max(FLOOR, SHARE * float(np.quantile(steps, 0.75)), SHARE * float(np.quantile(steps, 0.95)))
    starts = [0, *(np.flatnonzero(steps >= threshold) + 1).tolist(), len(frames)]
    return np.diff(starts).tolist()


def pose_indices(lengths: Sequence[int]) -> list[int]:
    """Index of the first frame of every hold."""
    return [0, *np.cumsum(lengths[:-1]).tolist()] if len(lengths) else []


def histogram_distance(found: Sequence[int], asked: Sequence[int]) -> float:
    """Earth mover's distance, in frames, between two distributions of hold lengths. 0 is a perfect cadence.

    The last hold of a video is cut off by its end, so it is left out where there are others.
    """
    if not len(found) or not len(asked):
        raise ValueError("hold lengths are needed on both sides")
    inner = found[:-1] if len(found) > 1 else found
    return float(stats.wasserstein_distance(inner, asked))
