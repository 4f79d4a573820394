"""Is a sample a copy of a training clip? The nearest training clip of every sample, shift in time included."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]

SIDE = 12
# Poses of the sample that are compared, evenly spread; a copy agrees in all of them.
POSES = 8


class Nearest(NamedTuple):
    """A training clip, where in it the match begins, and how far it is."""

    clip: int
    offset: int
    distance: float
    """Root mean square difference of normalised thumbnails: 0 a copy, about 1.4 unrelated."""


def thumbnails(video: Frames) -> NDArray[np.float32]:
    """Every pose as a normalised colour thumbnail: [T, 432], mean 0 and length 1, so that light and contrast drop out.

    A flat pose becomes the zero vector.
    """
    small = np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in video])
    vectors = small.reshape(len(video), -1).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def distances(sample: NDArray[np.float32], clip: NDArray[np.float32]) -> NDArray[np.float64]:
    """Distance of a sample [S, D] to every window of a clip [T, D] of the same length: [max(1, T - S + 1)].

    A clip shorter than the sample is compared with the sample's first poses.
    """
    length = min(len(sample), len(clip))
    chosen = np.unique(np.linspace(0, length - 1, POSES).round().astype(int))
    agreement = sample[chosen] @ clip.T  # [poses, T]
    windows = len(clip) - length + 1
    cosine = np.stack([agreement[row, pose : pose + windows] for row, pose in enumerate(chosen)]).mean(axis=0)
    return np.sqrt(np.maximum(2 - 2 * cosine.astype(np.float64), 0))


def nearest(sample: NDArray[np.float32], clips: list[NDArray[np.float32]], skip: int | None = None) -> Nearest:
    """The training clip and window nearest to a sample. Raises ValueError when there is no clip.

    `skip` leaves one clip out: the clip itself, when clips are compared among themselves.
    """
    best: Nearest | None = None
    for index, clip in enumerate(clips):
        if index == skip or not len(clip):
            continue
        found = distances(sample, clip)
        offset = int(found.argmin())
        if best is None or found[offset] < best.distance:
            best = Nearest(index, offset, float(found[offset]))
    if best is None:
        raise ValueError("there is no training clip to compare with")
    return best


def is_copy(found: Nearest, clips: list[NDArray[np.float32]], length: int) -> bool:
    """Whether a sample is nearer to a training clip than that clip is to any other one.

    The criterion of AuthPct (Alaa et al. 2022): it needs no threshold, since the training set's own spacing is the
    scale. With one training clip there is no scale; ValueError.
    """
    window = clips[found.clip][found.offset : found.offset + length]
    return found.distance < nearest(window, clips, skip=found.clip).distance
