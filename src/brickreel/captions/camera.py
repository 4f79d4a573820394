"""How the camera moves, from the textures beside the subject.

Corners are followed from picture to picture (Lucas and Kanade, 1981; Shi and Tomasi, 1994) and each step is fitted
with a shift, a turn and a scale.
"""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

_SHAKE = 0.25  # change beside the subject, in units of its texture's gradient, from which the camera moves
_TEXTURE = 1.5  # gradient in grey levels per pixel from which a place has texture: above noise and compression
_CELLS = 4  # the picture is judged in so many columns and rows: a camera moves all of it
_LEAST_TEXTURE = 0.02  # share of a cell that must have texture for it to be judged
_LEAST_CELLS, _MOVING_CELLS = 3, 0.6  # cells that can be judged, and the share of them that must move
_SHIFT, _SCALE = 0.05, 0.08  # of the picture's width, and relative: below it the motion has no direction
_CORNERS = 12  # corners below which a step cannot be fitted


@dataclass(frozen=True)
class Motion:
    """The camera's motion over the clip."""

    moves: bool
    right: float = 0.0
    """Way of the view to the right in widths of the picture; negative to the left."""
    closer: float = 0.0
    """Relative growth of what is seen."""

    @property
    def direction(self) -> str:
        """`closer`, `away`, `to the left`, `to the right`, or nothing when the motion has no clear direction."""
        if abs(self.closer) >= max(_SCALE, abs(self.right)):
            return "closer" if self.closer > 0 else "away"
        if abs(self.right) >= _SHIFT:
            return "to the right" if self.right > 0 else "to the left"
        return ""


def motion(lightness: NDArray[np.float32], beside: NDArray[np.bool_]) -> Motion:
    """The motion in pictures [count, height, width] of lightness 0 to 100, judged where `beside` holds."""
    if len(lightness) < 2:
        return Motion(False)
    smooth = np.stack([cv2.GaussianBlur(picture, (0, 0), 0.8) for picture in lightness])
    # The median in time: where a thing only passes, there is no texture.
    texture = np.median(np.hypot(*np.gradient(smooth, axis=(1, 2))), axis=0)
    judged = beside & (texture > _TEXTURE)
    # The median in time here too: a shadow passes, the view of a moving camera does not come back.
    shaken = np.median(np.abs(smooth[1:] - smooth[0]), axis=0) > _SHAKE * texture
    cells = [
        shaken[cell][judged[cell]].mean() > 0.5
        for cell in _grid(*beside.shape)
        if judged[cell].mean() >= _LEAST_TEXTURE
    ]
    if len(cells) < _LEAST_CELLS or np.mean(cells) < _MOVING_CELLS:
        return Motion(False)
    return _direction(smooth, beside)


def _grid(height: int, width: int) -> list[tuple[slice, slice]]:
    rows, columns = np.linspace(0, height, _CELLS + 1).astype(int), np.linspace(0, width, _CELLS + 1).astype(int)
    return [(slice(*row), slice(*column)) for row in pairwise(rows) for column in pairwise(columns)]


def _direction(smooth: NDArray[np.float32], beside: NDArray[np.bool_]) -> Motion:
    pictures = [np.clip(picture * 2.55, 0, 255).astype(np.uint8) for picture in smooth]
    height, width = beside.shape
    right, scale = 0.0, 1.0
    for before, after in pairwise(pictures):
        step = _step(before, after, beside.astype(np.uint8))
        if step is None:
            return Motion(True)
        centre = step @ [width / 2, height / 2, 1]
        right -= (centre[0] - width / 2) / width
        scale *= float(np.hypot(step[0, 0], step[1, 0]))
    return Motion(True, right, scale - 1)


def _step(before: NDArray[np.uint8], after: NDArray[np.uint8], where: NDArray[np.uint8]) -> NDArray[np.float64] | None:
    """[2, 3] matrix that takes the points of one picture to the next; None without enough corners."""
    corners = cv2.goodFeaturesToTrack(before, 120, 0.02, 3, mask=where)
    if corners is None or len(corners) < _CORNERS:
        return None
    found, status, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, np.empty(0, np.float32), winSize=(15, 15))
    kept = status.ravel() > 0
    if kept.sum() < _CORNERS:
        return None
    cv2.setRNGSeed(0)
    matrix, _ = cv2.estimateAffinePartial2D(corners[kept], found[kept], ransacReprojThreshold=1.0)
    return None if matrix is None else np.asarray(matrix, np.float64)
