"""Which frames of a clip are shown, and how they become pixels for the autoencoder. Facts: Open-Sora 1.1's reader."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from brickreel.config import RunData
from brickreel.training.assignment import STILL_FPS, span


def sampling_name(data: RunData, still: bool = False) -> str:
    """Stands in bucket names: samples of the same shape but of another time base must not meet in a bucket."""
    if still:
        return "still"
    even = "-even" if data.assignment == "opensora-1.1" else ""
    source = "-source" if data.fps_input == "source" else ""
    return f"{data.time}{data.stride}{even}{source}"


def told_rate(data: RunData, fps: float | None, pose_rate: float | None, still: bool = False) -> float:
    """What the model's fps input is told: of the shown poses or frames, or the film's own as the origin did."""
    if still:
        return STILL_FPS
    if data.fps_input == "source" or data.time == "frames":
        return (fps or 24.0) / (1 if data.fps_input == "source" else data.stride)
    return (pose_rate or fps or 24.0) / data.stride


def starts(units: int, frames: int, data: RunData, count: int) -> list[int]:
    """First units of up to `count` different windows, spread over a clip of `units` poses or frames."""
    last = last_start(units, frames, data)
    return sorted({round((place + 0.5) * last / count) for place in range(count)})


def last_start(units: int, frames: int, data: RunData) -> int:
    """The latest unit a window may begin at; the origin's is one earlier than need be."""
    if data.assignment == "opensora-1.1":
        return max(0, units - frames * data.stride - 1)
    return max(0, units - span(frames, data.stride))


def window(units: int, frames: int, data: RunData, start: int) -> NDArray[np.int64]:
    """Units that are shown. The origin spreads them evenly over `frames * stride`, so its stride is not exact."""
    if frames == 1:
        return np.array([start])
    if data.assignment == "opensora-1.1":
        end = min(start + frames * data.stride, units)
        return np.linspace(start, end - 1, frames, dtype=np.int64)
    return start + data.stride * np.arange(frames)


def file_frames(units: NDArray[np.int64], time: str, holds: Sequence[int] | None, in_poses: bool) -> NDArray[np.int64]:
    """Frames of the clip's file that show these units. `holds`: frames of the film per pose."""
    if holds is None or (time == "poses") == in_poses:
        return units
    if in_poses:
        return np.repeat(np.arange(len(holds)), holds)[units]
    return (np.cumsum(holds) - np.asarray(holds))[units]


def fill_and_crop(frames: Tensor, height: int, width: int, place: float = 0.5) -> Tensor:
    """uint8 [N, 3, H, W] to float [N, 3, height, width] in [-1, 1]: scaled to fill, then cropped at `place`.

    Bilinear without antialiasing, as the base model's training had it. `place` goes from 0 (top, left) to 1.
    """
    rows, columns = filled(frames.shape[-2], frames.shape[-1], height, width)
    scaled = F.interpolate(frames.float() / 255, size=(rows, columns), mode="bilinear", align_corners=False)
    if place == 0.5:
        top, left = int(round(rows - height) / 2.0), int(round(columns - width) / 2.0)
    else:
        top, left = round((rows - height) * place), round((columns - width) * place)
    return (scaled[..., top : top + height, left : left + width] - 0.5) / 0.5


def crop_places(source: tuple[int, int], target: tuple[int, int], count: int) -> list[float]:
    """Where the crops stand along the side that is cut; one place when nothing is cut."""
    if count == 1 or filled(*source, *target) == target:
        return [0.5]
    return [place / (count - 1) for place in range(count)]


def filled(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """Size of a picture scaled until it covers height x width, its aspect ratio kept."""
    if height / rows > width / columns:
        return height, round(columns * (height / rows))
    return round(rows * (width / columns)), width


def to_tensor(frames: NDArray[np.uint8]) -> Tensor:
    """[N, H, W, 3] to [N, 3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
