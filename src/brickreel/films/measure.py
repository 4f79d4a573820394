"""Measurements on one small picture or on two neighbouring ones. Plain arithmetic on arrays, no state."""

import cv2
import numpy as np
from numpy.typing import NDArray

Luma = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Blocks of the comparison between two frames: small enough that a moving mouth fills one.
BLOCK = 6
# Grid on which the light is compared: large enough that a moving figure does not pass for a lamp.
LIGHT_GRID = (16, 9)


def compare(before: Floats, after: Floats) -> tuple[float, float, float]:
    """(hold score, motion, flicker) between two luma pictures [H, W] of neighbouring frames.

    The change of light is taken out first: gain and offset of each region, robustly, since a lamp changes many regions
    alike and a puppet few. What is left is averaged over 3x3 pixels, which sensor noise does not survive and a moved
    edge does, and looked at block by block. The hold score is the level of the strongest blocks relative to the typical
    block, in grey levels; motion the mean absolute difference, 0 to 1; flicker the relative change of light.
    """
    gain = light_change(before, after)
    rest = cv2.blur(after - before * gain, (3, 3))
    rows, columns = rest.shape[0] // BLOCK, rest.shape[1] // BLOCK
    # Whole blocks only: an even factor is many times as fast.
    blocks = rest[: rows * BLOCK, : columns * BLOCK]
    energy = cv2.resize(blocks * blocks, (columns, rows), interpolation=cv2.INTER_AREA).ravel()
    middle = len(energy) // 2
    ordered = np.sqrt(np.partition(energy, (middle, len(energy) - 3)))
    strongest, typical = float(ordered[-3:].sum()) / 3, float(ordered[middle])
    motion = cv2.norm(rest, cv2.NORM_L1) / (255 * rest.size)
    return strongest - 1.5 * typical, motion, abs(gain - 1)


def light_change(before: Floats, after: Floats) -> float:
    """Factor by which the light changed: the median over a coarse grid."""
    first = cv2.resize(before, LIGHT_GRID, interpolation=cv2.INTER_AREA)
    second = cv2.resize(after, LIGHT_GRID, interpolation=cv2.INTER_AREA)
    ratio = ((second + 4) / (first + 4)).ravel()
    return float(np.partition(ratio, len(ratio) // 2)[len(ratio) // 2])


def sharpness_lost(luma: Luma) -> float:
    """Blur, 0 (sharp) to 1 (featureless): how little a further blur takes from the gradients.

    After F. Crete et al., "The blur effect", Human Vision and Electronic Imaging XII, 2007.
    """
    softer = cv2.blur(luma, (5, 5))
    kept = []
    for first, second in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        before, after = cv2.absdiff(luma[first], luma[second]), cv2.absdiff(softer[first], softer[second])
        total = cv2.norm(before, cv2.NORM_L1)
        # Subtraction stops at zero.
        kept.append(1 - cv2.norm(cv2.subtract(before, after), cv2.NORM_L1) / total if total else 1.0)
    return max(kept)


def perceptual_hash(luma: Luma) -> int:
    """64 bits: signs of the lowest 8 x 8 cosine coefficients (without the mean) against their median."""
    small = cv2.resize(luma, (32, 32), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    low = cv2.dct(small)[:9, :9].ravel()
    # The mean of the picture is left out, and the 65th lowest and beyond.
    chosen = low[1:65]
    middle = np.partition(chosen, (31, 32))[31:33].sum() / 2
    return int.from_bytes(np.packbits(chosen > middle).tobytes(), "big")


def black_bars(full: Luma) -> tuple[int, int, int, int]:
    """The picture inside black bars: left, top, right, bottom in pixels; the whole frame when there are none.

    A bar is rows or columns at an edge in which (almost) nothing is brighter than video black. Black frames have none.
    """
    height, width = full.shape
    bright = cv2.threshold(full, BAR_LEVEL, 1, cv2.THRESH_BINARY)[1]
    rows = cv2.reduce(bright, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() > BAR_SHARE * width
    columns = cv2.reduce(bright, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() > BAR_SHARE * height
    if not rows.any() or not columns.any():
        return 0, 0, width, height
    top, bottom = int(rows.argmax()), height - int(rows[::-1].argmax())
    left, right = int(columns.argmax()), width - int(columns[::-1].argmax())
    # A night scene is not a letterbox: bars lie on both sides and leave most of the picture.
    if (bottom - top) < height * 0.5 or min(top, height - bottom) * 4 < max(top, height - bottom):
        top, bottom = 0, height
    if (right - left) < width * 0.5 or min(left, width - right) * 4 < max(left, width - right):
        left, right = 0, width
    return left, top, right, bottom


# Video black is 16; encoders ring a little around it, in a few pixels more.
BAR_LEVEL = 30
BAR_SHARE = 0.02


# Share of the picture that the strokes of any text worth a filter cover.
LEAST_STROKES = 0.004


def text_share(luma: Luma) -> float:
    """Share of the picture covered by what looks like lines of text, 0 to 1.

    Letters are dense, strong vertical strokes of two levels in a row: strokes are joined sideways, and a component
    counts when it is wider than high, filled with strokes, and of high contrast against an even surrounding. Looked for
    at two sizes, since the strokes of a title's large letters lie far apart.
    """
    half = cv2.resize(luma, (luma.shape[1] // 2, luma.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return max(_text_of_one_size(luma), _text_of_one_size(np.asarray(half, np.uint8)))


def _text_of_one_size(luma: Luma) -> float:
    edges = np.abs(cv2.Sobel(luma, cv2.CV_16S, 1, 0, ksize=3))
    strokes = (edges > 160).astype(np.uint8)
    if cv2.countNonZero(strokes) < LEAST_STROKES * luma.size:
        return 0.0
    joined = cv2.morphologyEx(strokes, cv2.MORPH_CLOSE, np.ones((1, 9), np.uint8))
    count, _, stats, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
    height, width = luma.shape
    covered = 0
    for left, top, wide, high, area in stats[1:count]:
        if not (4 <= high <= height * 0.25 and wide >= 2.2 * high and area >= 0.55 * wide * high):
            continue
        box = strokes[top : top + high, left : left + wide]
        # Strokes alternate along a line of text; a single edge or a row of studs does so far less.
        changes = np.abs(np.diff(box.astype(np.int8), axis=1)).sum(axis=1)
        if np.median(changes) >= 2 * wide / max(high, 6) and _two_levels(luma[top : top + high, left : left + wide]):
            covered += wide * high
    return covered / (height * width)


def _two_levels(box: Luma) -> bool:
    low, high = np.percentile(box, (10, 90))
    middle = ((box > low + 0.35 * (high - low)) & (box < high - 0.35 * (high - low))).mean()
    return bool(high - low > 60 and middle < 0.35)
