"""What can be measured in a few pictures of a clip: subject, colours, place, size, motion, backdrop, light, camera.

A set is lit evenly and reaches the edges of the picture, so the colours at the edges are those of the set, and what
has other colours is a subject. Before a fixed camera the median over the pictures is the set without its moving
parts, and what differs from it moves. The camera moves when the textures beside the subject do.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from brickreel.captions import camera, palette

SIDE = 112
"""Longest side in pixels of the pictures that are measured: colours and places need no more."""
_MOVED = 14.0  # CIELAB distance from the median picture that counts as motion: above light flicker and compression
_DISTINCT = 17.0  # CIELAB distance from every colour of the set that counts as a subject
_LIGHTNESS_WEIGHT = 0.45  # differences in lightness count less than those in colour: shadows and folds are no subjects
_SET_BIN, _SET_SHARE = 10.0, 0.015  # a colour of the set: this bin of CIELAB holds this share of the picture's edge
_LEAST_AREA = 0.004  # share of the picture below which a region is noise
_CROWDED = 0.6  # share of the pictures with colours of no set from which nothing can be told to stand beside a subject
_LIKE = 0.4  # a region of this share of the largest one's area is its companion
_IN_MOTION = 0.05  # share of a region that must change at some time for the region to count as moving

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Region:
    """The subject, or several together, in one picture: edges, centre and area as shares of the picture."""

    left: float
    top: float
    right: float
    bottom: float
    x: float
    y: float
    area: float
    count: int
    """Things of a similar size that it consists of."""


@dataclass(frozen=True)
class Measured:
    """Everything that the embedded captioner knows of a clip or still."""

    colours: list[str]
    """Of the subject, most frequent first; empty without a subject."""
    path: list[Region]
    """The subject's regions in time; one for a still."""
    times_s: list[float]
    moving: bool
    """The subject moves or changes."""
    camera: camera.Motion
    backdrop: str
    ground: str
    luma: float
    """Mean brightness, 0 to 255."""


def measure(pictures: NDArray[np.uint8], times_s: list[float]) -> Measured:
    """Measure RGB pictures [count, height, width, 3] taken at the given times."""
    lab = np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2LAB) for picture in pictures]).astype(np.float32)
    lab[..., 0] *= 100 / 255
    lab[..., 1:] -= 128
    # The light of a set varies from picture to picture. Its change is that of most pixels, whatever enters the scene.
    usual = np.median(lab[..., 0], axis=0)
    lab[..., 0] -= np.median(lab[..., 0] - usual, axis=(1, 2), keepdims=True)
    distinct, moved = _distinct(lab), _moved(lab)
    crowded = distinct.mean() > _CROWDED
    view = camera.motion(
        lab[..., 0], np.full(lab.shape[1:3], True) if crowded else ~_grown(np.asarray(np.any(distinct, axis=0)))
    )
    moving = bool(moved.mean() > _LEAST_AREA / 2)
    changing = np.asarray(np.any(moved, axis=0)) if moving and not view.moves else None
    subjects, path, times = [], [], []
    for k in range(len(pictures)):
        mask, region = _subject(distinct[k], moved[k], changing)
        subjects.append(mask)
        if region:
            path.append(region)
            times.append(times_s[k])
    subject = np.stack(subjects)
    named = palette.names_of(pictures)
    backdrop, ground = _halves(pictures, named, distinct | moved)
    luma = cv2.cvtColor(pictures.reshape(-1, pictures.shape[2], 3), cv2.COLOR_RGB2GRAY)
    return Measured(
        colours=palette.dominant(named[subject], 2, 0.2) if subject.any() else [],
        path=path,
        times_s=times,
        moving=moving,
        camera=view,
        backdrop=backdrop,
        ground=ground,
        luma=float(luma.mean()),
    )


def _distinct(lab: NDArray[np.float32]) -> Mask:
    """Where a picture has a colour that its set has not. [count, height, width]."""
    weighted = lab * np.array([_LIGHTNESS_WEIGHT, 1, 1], np.float32)
    edge = max(1, lab.shape[1] // 24)
    strips = (weighted[:, :edge], weighted[:, -edge:], weighted[:, :, :edge], weighted[:, :, -edge:])
    border = np.concatenate([strip.reshape(-1, 3) for strip in strips])
    bins, where, counts = np.unique(np.round(border / _SET_BIN), axis=0, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(where.ravel(), border[:, channel], len(bins)) for channel in range(3)], axis=1)
    colours = (sums / counts[:, None])[counts >= _SET_SHARE * len(border)].astype(np.float32)
    nearest = np.full(lab.shape[:3], np.inf, np.float32)
    for colour in colours:
        np.minimum(nearest, np.linalg.norm(weighted - colour, axis=-1), out=nearest)
    return np.stack([_without_specks(mask) for mask in nearest > _DISTINCT])


def _moved(lab: NDArray[np.float32]) -> Mask:
    """Where each picture differs from the median of all, without specks. [count, height, width]."""
    if len(lab) < 2:
        return np.zeros(lab.shape[:3], bool)
    far = np.linalg.norm(lab - np.median(lab, axis=0), axis=-1) > _MOVED
    return np.stack([_without_specks(mask) for mask in far])


def _without_specks(mask: Mask) -> Mask:
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)) > 0


def _grown(mask: Mask) -> Mask:
    return cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0


def _subject(distinct: Mask, moved: Mask, changing: Mask | None) -> tuple[Mask, Region | None]:
    """Mask and region of the largest thing and those like it: of the moving ones, where `changing` says what moves.

    A thing of the set's own colours shows only by its motion, which is taken where nothing else is found.
    """
    for mask in (distinct, moved):
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        areas = stats[:, cv2.CC_STAT_AREA].astype(float)
        areas[0] = 0
        if changing is not None:
            inside = np.bincount(labels[changing], minlength=count)
            areas[inside < _IN_MOTION * areas] = 0
        if count > 1 and areas.max() >= _LEAST_AREA * mask.size:
            alike = np.flatnonzero(areas >= max(_LIKE * areas.max(), _LEAST_AREA * mask.size))
            chosen = np.isin(labels, alike)
            return chosen, _region(chosen, len(alike))
    return np.zeros_like(distinct), None


def _region(mask: Mask, count: int) -> Region:
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    return Region(
        left=columns.min() / width,
        top=rows.min() / height,
        right=(columns.max() + 1) / width,
        bottom=(rows.max() + 1) / height,
        x=float(columns.mean() + 0.5) / width,
        y=float(rows.mean() + 0.5) / height,
        area=len(rows) / mask.size,
        count=count,
    )


def _halves(pictures: NDArray[np.uint8], named: NDArray[np.uint8], subject: Mask) -> tuple[str, str]:
    """Colour of what is behind (upper 40 %) and below (lower quarter) the subject."""
    height = pictures.shape[1]
    result = []
    for rows in (slice(0, height * 2 // 5), slice(height - max(1, height // 4), height)):
        free = ~subject[:, rows]
        if free.mean() < 0.05:
            free = np.ones_like(free)
        name = palette.dominant(named[:, rows][free], 1, 0)[0]
        shown = pictures[:, rows][free & (named[:, rows] == palette.NAMES.index(name))]
        result.append(palette.shaded(name, shown))
    return result[0], result[1]
