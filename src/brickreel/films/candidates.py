"""Candidate clips from per-frame signals, for many films at once: arithmetic on whole columns, no loop over frames.

Shots are runs of frames between transitions, cut again where the picture turns black. A shot's poses are its frames
with `new_pose`; long shots are split into clips of nearly equal length in poses.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from brickreel.config import Curate
from brickreel.films import cadence

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Poses of a clip whose hashes stand for it when clips are compared.
SAMPLES = 8
# Signals that a clip gets as means over its poses.
MEANS = ("luma", "contrast", "blur", "flicker", "text_score")
# Of these the first pose of a shot says nothing: it is compared with another shot.
INNER_MEANS = ("motion", "hold_score")


class Frames(NamedTuple):
    """Columns of the signals of whole films, frame by frame; all [N]."""

    film: Ints
    """Index of the film; frames of a film are contiguous and in order."""
    frame: Ints
    time_s: Floats
    blend: Flags
    """In a dissolve or fade."""
    cut: Flags
    """First frame after a hard cut."""
    new_pose: Flags
    crop: NDArray[np.int32]
    """[N, 4]."""
    phash: NDArray[np.uint64]
    values: dict[str, NDArray[np.float32]]
    """The signals in MEANS and INNER_MEANS."""


class Films(NamedTuple):
    """Facts per film, [F]."""

    fps: Floats
    variable_rate: Flags
    width: Ints
    height: Ints


class Clips(NamedTuple):
    """Candidates, [C] each; lists are flat values with offsets [C + 1]."""

    film: Ints
    start: Ints
    end: Ints
    offsets: Ints
    pose_frames: Ints
    holds: Ints
    pose_rate: Floats
    cadence: NDArray[np.str_]
    crop: NDArray[np.int32]
    still: Ints
    black: Flags
    values: dict[str, Floats]
    hashes: NDArray[np.uint64]
    """[C, SAMPLES]: perceptual hashes of poses spread evenly over the clip."""

    @property
    def poses(self) -> Ints:
        """Poses per clip."""
        return np.diff(self.offsets)


def find(frames: Frames, films: Films, settings: Curate) -> Clips:
    """All candidate clips of the films, in order."""
    gap = _gaps(frames, films, settings.freeze_s)
    segment, black = _segments(frames, gap, settings.min_luma)
    inside = segment >= 0
    rows = np.flatnonzero(inside)
    segment = segment[rows]
    new = frames.new_pose[rows] | _first(segment)
    new = _thaw(new, segment, films.fps[frames.film[rows]], settings.freeze_s)
    pose_rows = np.flatnonzero(new)
    clip_of_pose = _split(segment[pose_rows], settings.min_poses, settings.max_poses)
    starts = np.flatnonzero(_first(clip_of_pose))
    return _describe(frames, films, rows, segment, pose_rows, starts, black, gap)


def _gaps(frames: Frames, films: Films, freeze_s: float) -> Flags:
    """Where the time jumps: nobody knows what was seen meanwhile."""
    result = np.zeros(len(frames.film), bool)
    result[1:] = np.diff(frames.time_s) > np.maximum(freeze_s, 1.5 / films.fps[frames.film[1:]])
    return result & ~_first(frames.film)


def _segments(frames: Frames, gap: Flags, min_luma: float) -> tuple[Ints, Flags]:
    """Segment number of each frame, -1 in transitions, and for each segment whether it is black."""
    dark = frames.values["luma"] < min_luma
    blend = _widened(frames.blend, frames.film)
    changed = _first(frames.film) | frames.cut | gap
    changed[1:] |= (blend[:-1] & ~blend[1:]) | (dark[1:] != dark[:-1])
    segment = np.cumsum(changed & ~blend) - 1
    first = np.flatnonzero(changed & ~blend)
    return np.where(blend, -1, segment), dark[first]


def _widened(blend: Flags, film: Ints) -> Flags:
    """Blends with the frame on either side: where a dissolve begins it shows too little of the next shot to be seen."""
    result = blend.copy()
    same = film[1:] == film[:-1]
    result[1:] |= blend[:-1] & same
    result[:-1] |= blend[1:] & same
    return result


def _first(labels: Ints) -> Flags:
    """True where a run of equal labels begins."""
    result = np.ones(len(labels), bool)
    result[1:] = labels[1:] != labels[:-1]
    return result


def _thaw(new: Flags, segment: Ints, fps: Floats, freeze_s: float) -> Flags:
    """In shots on ones a long repetition is a freeze frame of ordinary footage: it is kept as it is, frame by frame."""
    starts = np.flatnonzero(new)
    if not len(starts):
        return new
    holds = np.diff(np.append(starts, len(new)))
    shot = segment[starts]
    shot = np.cumsum(_first(shot)) - 1
    ones = np.bincount(shot, holds == 1) >= 0.7 * np.bincount(shot)
    frozen = ones[shot] & (holds > freeze_s * fps[starts])
    return new | np.repeat(frozen, holds)


def _split(segment_of_pose: Ints, shortest: int, longest: int) -> Ints:
    """Clip number of each pose: segments in pieces of nearly equal length, none longer than `longest`.

    Where such pieces would be too short, all but the last are of the longest length instead, and it alone is.
    """
    starts = np.flatnonzero(_first(segment_of_pose))
    lengths = np.diff(np.append(starts, len(segment_of_pose)))
    pieces = -(-lengths // longest)
    place = np.arange(len(segment_of_pose)) - np.repeat(starts, lengths)
    equal = place * np.repeat(pieces, lengths) // np.repeat(lengths, lengths)
    piece = np.where(np.repeat(lengths // pieces < shortest, lengths), place // longest, equal)
    return piece + np.repeat(np.cumsum(pieces) - pieces, lengths)


def _describe(
    frames: Frames, films: Films, rows: Ints, segment: Ints, pose_rows: Ints, starts: Ints, black: Flags, gap: Flags
) -> Clips:
    offsets = np.append(starts, len(pose_rows))
    counts = np.diff(offsets)
    first_row = rows[pose_rows[starts]]
    film = frames.film[first_row]
    # A hold lasts until the next pose, the last of a segment until the segment's end.
    last = np.append(pose_rows[1:], len(rows))
    holds = last - pose_rows
    end = frames.frame[rows[last[offsets[1:] - 1] - 1]] + 1
    poses = rows[pose_rows]
    holds = _by_time(holds, frames, films, rows, pose_rows, last, gap)
    long = np.add.reduceat(holds, starts) if len(starts) else holds
    rate = counts * films.fps[film] / np.maximum(long, 1)
    continued = ~_first(segment[pose_rows])
    return Clips(
        film=film,
        start=frames.frame[first_row],
        end=end,
        offsets=offsets,
        pose_frames=frames.frame[poses],
        holds=holds,
        pose_rate=rate,
        cadence=cadence.labels(holds, starts, counts, films.fps[film]),
        crop=_crops(frames.crop[poses], starts, counts, films.width[film], films.height[film]),
        still=frames.frame[poses[_sharpest(frames.values["blur"][poses], starts, counts)]],
        black=black[segment[pose_rows[starts]]],
        values=_means(frames, poses, starts, counts, continued),
        hashes=frames.phash[poses[_samples(starts, counts)]],
    )


def _by_time(holds: Ints, frames: Frames, films: Films, rows: Ints, pose_rows: Ints, last: Ints, gap: Flags) -> Ints:
    """Where the frame rate varies, frames do not count alike: holds by the timestamps, in frames of the usual rate."""
    varies = films.variable_rate[frames.film[rows[pose_rows]]]
    if not varies.any():
        return holds
    begin, end = rows[pose_rows], rows[last - 1]
    fps = films.fps[frames.film[begin]]
    # The frame after the hold tells how long its last one was; at the end of the film, and before a gap, there is none.
    after = np.minimum(end + 1, len(frames.frame) - 1)
    known = (after > end) & (frames.film[after] == frames.film[begin]) & ~gap[after]
    seconds = np.where(known, frames.time_s[after], frames.time_s[end] + 1 / fps) - frames.time_s[begin]
    timed = np.rint(seconds * fps).astype(np.int64)
    return np.where(varies, np.maximum(timed, 1), holds)


def _crops(crop: NDArray[np.int32], starts: Ints, counts: Ints, width: Ints, height: Ints) -> NDArray[np.int32]:
    """What all poses of a clip show inside black bars; the whole frame unless most poses have bars. Even numbers."""
    whole = np.stack([np.zeros_like(width), np.zeros_like(width), width, height], axis=1).astype(np.int32)
    if not len(starts):
        return whole
    each = np.repeat(whole, counts, axis=0)
    barred = (crop != each).any(axis=1)
    most = np.add.reduceat(barred.astype(np.int64), starts) > 0.6 * counts
    low = np.minimum.reduceat(np.where(barred[:, None], crop, 1 << 30)[:, :2], starts)
    high = np.maximum.reduceat(np.where(barred[:, None], crop, 0)[:, 2:], starts)
    inner = np.concatenate([(low + 1) // 2 * 2, high // 2 * 2], axis=1)
    return np.where(most[:, None], inner, whole).astype(np.int32)


def _sharpest(blur: NDArray[np.float32], starts: Ints, counts: Ints) -> Ints:
    """Index of the sharpest pose in the middle third of each clip."""
    if not len(starts):
        return starts
    place = np.arange(len(blur)) - np.repeat(starts, counts)
    third = np.repeat(counts // 3, counts)
    middle = (place >= third) & (place < np.repeat(counts, counts) - third)
    masked = np.where(middle, blur, np.inf)
    lowest = np.repeat(np.minimum.reduceat(masked, starts), counts)
    hits = np.flatnonzero(masked == lowest)
    clip = np.repeat(np.arange(len(starts)), counts)[hits]
    return hits[_first(clip)]


def _means(frames: Frames, poses: Ints, starts: Ints, counts: Ints, continued: Flags) -> dict[str, Floats]:
    if not len(starts):
        return {name: np.zeros(0) for name in (*MEANS, *INNER_MEANS)}
    result = {name: np.add.reduceat(frames.values[name][poses].astype(np.float64), starts) / counts for name in MEANS}
    number = np.maximum(np.add.reduceat(continued.astype(np.int64), starts), 1)
    for name in INNER_MEANS:
        values = np.where(continued, frames.values[name][poses].astype(np.float64), 0)
        result[name] = np.add.reduceat(values, starts) / number
    return result


def _samples(starts: Ints, counts: Ints) -> Ints:
    """[C, SAMPLES] indices of poses at the middles of equal parts of each clip."""
    parts = (np.arange(SAMPLES) + 0.5) / SAMPLES
    return starts[:, None] + (parts * counts[:, None]).astype(np.int64)
