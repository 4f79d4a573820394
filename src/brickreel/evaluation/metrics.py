"""Measures of one video in pose time. Videos are uint8 [T, H, W, 3], one frame per pose unless said otherwise.

Levels are grey levels of 8 bits (0 to 255). Every function raises ValueError when the video is too short for it.
"""

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]

# Immerkær's mask: the difference of two Laplacians, blind to edges of constant slope.
_NOISE_MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


def grey(frames: Frames) -> NDArray[np.float32]:
    """Luma [T, H, W] in levels."""
    return np.stack([cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]).astype(
        np.float32
    )


def check(frames: Frames) -> None:
    """Raise ValueError for a video that carries no picture: what NaN in a model or a decoder leaves behind."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"a video of shape [frames, height, width, 3] is needed, not {frames.shape}")
    if int(np.ptp(frames)) == 0:
        raise ValueError("every pixel of every frame has the same value: the model or the decoder produced no picture")


def flicker_between(frames: Frames) -> float:
    """Unsteadiness of the light from pose to pose: mean |second difference| of the frame's mean level, in levels.

    A slow fade is no flicker, and its second difference is 0.
    """
    _need(frames, 3)
    level = grey(frames).mean(axis=(1, 2))
    return float(np.abs(np.diff(level, n=2)).mean() / 2)


def flicker_within(frames: Frames, holds: list[int]) -> float:
    """Change between video frames that show one held pose: mean absolute difference in levels.

    `frames` are video frames here, `holds` the length of every pose. Raises ValueError when no pose is held.
    """
    if sum(holds) != len(frames):
        raise ValueError(f"holds count {sum(holds)} frames, the video has {len(frames)}")
    starts = set(np.cumsum([0, *holds[:-1]]).tolist())
    inside = [index for index in range(1, len(frames)) if index not in starts]
    if not inside:
        raise ValueError("no pose is held for two frames or more")
    light = grey(frames)
    return float(np.mean([np.abs(light[index] - light[index - 1]).mean() for index in inside]))


def noise(frames: Frames) -> float:
    """Standard deviation of pixel noise in levels, median over poses (Immerkær, CVIU 64(2), 1996).

    Fine texture counts as noise too: read it beside the value of held-out clips.
    """
    _need(frames, 1, size=3)
    values = []
    for picture in grey(frames):
        response = cv2.filter2D(picture, cv2.CV_32F, _NOISE_MASK)[1:-1, 1:-1]
        values.append(float(np.sqrt(np.pi / 2) * np.abs(response).mean() / 6))
    return float(np.median(values))


def sharpness(frames: Frames) -> float:
    """Detail in a picture: root mean square gradient over contrast, median over poses. Blur lowers it."""
    _need(frames, 1, size=3)
    values = []
    for picture in grey(frames):
        across, down = cv2.Sobel(picture, cv2.CV_32F, 1, 0) / 8, cv2.Sobel(picture, cv2.CV_32F, 0, 1) / 8
        values.append(float(np.sqrt((across**2 + down**2).mean()) / (picture.std() + 1.0)))
    return float(np.median(values))


def motion(frames: Frames) -> float:
    """Mean displacement from pose to pose, in hundredths of the picture's diagonal (DIS optical flow)."""
    _need(frames, 2, size=16)
    light = grey(frames).astype(np.uint8)
    diagonal = float(np.hypot(*light.shape[1:]))
    moved = [np.hypot(*np.moveaxis(_flow(a, b), 2, 0)).mean() for a, b in pairwise(light)]
    return float(np.mean(moved) / diagonal * 100)


def smoothness(frames: Frames) -> float:
    """How well each pose lies between its neighbours: 1 is perfect, 0 is no better than no relation at all.

    Each inner pose is predicted by moving its two neighbours half way along their optical flow; the error is set
    against the video's contrast (its standard deviation), as 1 - error / contrast, not below 0. Because it counts
    poses, a video shot on twos scores like the same poses on ones; the same test on video frames fails every held
    frame (VBench's motion smoothness).
    """
    _need(frames, 3, size=16)
    light = grey(frames)
    bytes_ = light.astype(np.uint8)
    errors = []
    for index in range(1, len(light) - 1):
        before, after = bytes_[index - 1], bytes_[index + 1]
        middle = (
            _moved(light[index - 1], _flow(after, before) / 2) + _moved(light[index + 1], _flow(before, after) / 2)
        ) / 2
        errors.append(np.abs(middle - light[index]).mean())
    return float(max(0.0, 1 - np.mean(errors) / max(float(light.std()), 1.0)))


def _flow(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    engine: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    # The preset starts at a quarter of the size and would see nothing in pictures of 64 rows.
    engine.setFinestScale(0 if min(first.shape) < 256 else 1)
    return engine.calc(first, second, None)


def _moved(picture: NDArray[Any], flow: NDArray[Any]) -> NDArray[Any]:
    rows, columns = np.indices(picture.shape, np.float32)
    return cv2.remap(
        picture, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def _need(frames: Frames, poses: int, size: int = 1) -> None:
    if len(frames) < poses:
        raise ValueError(f"{len(frames)} poses, at least {poses} are needed")
    if min(frames.shape[1:3]) < size:
        raise ValueError(f"pictures of {frames.shape[1]} x {frames.shape[2]} pixels, at least {size} are needed")
