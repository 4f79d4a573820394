"""Hold detection: which frames show a new pose, and how a shot is timed.

A stop-motion film repeats each pose for one, two, three or more frames. Between two frames of one pose only noise,
compression and the lamp change, between two poses a puppet does: the hold scores of a shot (`measure.compare`) fall
into two heaps. Where they do not - live action, slow motion, a still picture - nothing is held, whatever the scores,
except for frames that repeat the one before.
"""

from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Grey levels. Below DUPLICATE the strongest blocks differ by less than any camera's noise.
DUPLICATE = 1.0
# Re-encoded holds stay below LARGEST_HELD, moved puppets above SMALLEST_NEW.
LARGEST_HELD, SMALLEST_NEW = 20.0, 2.0
# A new pose stands out by these factors from the middle of the hold beside it and from its nearest frame; ordinary
# motion slows down and speeds up by degrees.
CONTRAST, EDGE_CONTRAST = 3.0, 2.5
# Where no frame at all lies between the heaps, over this factor, less will do.
CLEAR_GAP, CLEAR_CONTRAST, CLEAR_EDGE_CONTRAST = 1.35, 1.6, 1.25
# Where less than this share of the frames is held, a change of frame rate has repeated them, and they score below this:
# what stands still for a moment is a small movement of a shot on ones.
FEW, REPEATED = 0.25, 6.0
# Percentile of the scores that is a duplicate's in a still shot: an encoder mends a few frames after a cut.
STILL = 90
# Share of the frames that may lie within a quarter of the threshold.
CROWDED = 0.15
# Rounding to 8 bits after a change of light leaves this many grey levels per unit of relative change.
LIGHT_ROUNDING = 150.0
# Share of the holds that have one length in a steady shot, and how many frames evenly lengthened ones may stray by.
STEADY, EVEN = 0.8, 1.3
# The middles of the heaps are apart by the first factor, or by the second where so wide a gap is between them.
SEPARATION, NEAR_SEPARATION, WIDE_GAP = 4.0, 2.5, 1.6
# Holds are regular where so many of them, at least, have one length, and this share of them all.
REGULAR_HOLDS, REGULAR = 8, 0.9
# A shot has a beat where this share of its plain holds have one length, and these fill this share of its frames.
BEAT, COVERED = 0.6, 0.4
# A frame on the beat within a longer hold is a new pose if it stands out from the others there by the first factor, any
# other if it does so from all held frames near it by the second.
ON_BEAT, OFF_BEAT = 1.25, 2.5
# Frames on either side that are near; frames after a cut in which an encoder mends its first picture.
NEAR, SETTLING = 12, 4


class Cadence(NamedTuple):
    """How a shot is timed."""

    label: str
    """ones, twos, threes or mixed."""
    pose_rate: float
    """Poses per second."""
    histogram: dict[int, int]
    """Hold length in frames -> poses."""
    phase: int
    """Frame of the shot, modulo the commonest hold length, on which most poses begin."""


def new_poses(scores: NDArray[np.float32], flicker: NDArray[np.float32]) -> NDArray[np.bool_]:
    """For each frame of one shot whether it shows a new pose.

    `scores` [N] compare each frame with the one before it (`measure.compare`), `flicker` [N] is the relative change of
    light between the two. The first frame of a shot is always new.
    """
    held = np.zeros(len(scores), bool)
    if len(scores) > 1:
        duplicate = DUPLICATE + LIGHT_ROUNDING * float(np.percentile(flicker[1:], 90))
        held = _held(np.maximum(np.asarray(scores, np.float64), 0.05), duplicate)
        held[0] = False
        _settled(scores, held)
    return ~held


def _settled(scores: NDArray[np.float32], held: NDArray[np.bool_]) -> None:
    """Encoders mend the coarse first pictures after a cut: where nothing moves later, that is no pose."""
    moved = np.flatnonzero(~held)
    if moved[-1] < SETTLING < len(held) // 2 and (scores[moved[1:]] < LARGEST_HELD).all():
        held[1:] = True


def _held(scores: NDArray[np.float64], duplicate: float) -> NDArray[np.bool_]:
    inner = scores[1:]
    if np.percentile(inner, STILL) < duplicate:
        return np.ones(len(scores), bool)
    valley = _valley(inner)
    if valley is None:
        return _stands_out(scores, scores < duplicate, CONTRAST, EDGE_CONTRAST)
    held = scores < valley
    if held.mean() < FEW:
        held &= scores < REPEATED
    clear = inner[inner >= valley].min() >= CLEAR_GAP * inner[inner < valley].max()
    contrasts = (CLEAR_CONTRAST, CLEAR_EDGE_CONTRAST) if clear else (CONTRAST, EDGE_CONTRAST)
    sure = _stands_out(scores, held, *contrasts)
    doubtful = held & ~sure
    beat = _beat(sure, doubtful)
    return _divided(scores, sure | _keeps_the_beat(scores, doubtful, beat), beat, duplicate)


def _valley(scores: NDArray[np.float64]) -> float | None:
    """The threshold between two heaps (Otsu's criterion on logarithms), None where there is one heap."""
    # All scores of copied frames are alike: a few at zero would pull the threshold down among the noisy ones.
    logs = np.sort(np.log(np.maximum(scores, DUPLICATE)))
    if len(logs) < 4:
        return None
    apart = (np.exp(logs[:-1]) < LARGEST_HELD) & (np.exp(logs[1:]) > SMALLEST_NEW)
    below = np.arange(1, len(logs))
    sums = np.cumsum(logs)
    low = sums[:-1] / below
    high = (sums[-1] - sums[:-1]) / (len(logs) - below)
    between = below * (len(logs) - below) * (high - low) ** 2
    between[~apart] = -1
    best = int(between.argmax())
    if between[best] <= 0:
        return None
    # Otsu's threshold may lie anywhere in an empty valley: take its widest gap.
    near = np.flatnonzero((between > 0) & (between >= 0.9 * between[best]))
    gaps = logs[near + 1] - logs[near]
    cut = int(near[gaps.argmax()])
    middle = (logs[cut] + logs[cut + 1]) / 2
    # Compressed hard, heaps draw near to each other; that one frame in so many is above is then no chance.
    alternate = gaps.max() >= np.log(CLEAR_GAP) and _is_regular(scores >= np.exp(middle))
    apart_by = NEAR_SEPARATION if alternate or gaps.max() >= np.log(WIDE_GAP) else SEPARATION
    if high[best] - low[best] < np.log(apart_by):
        return None
    crowded = np.mean(np.abs(logs - middle) < np.log(1.25))
    return float(np.exp(middle)) if crowded <= CROWDED else None


def _is_regular(new: NDArray[np.bool_]) -> bool:
    """Whether new poses follow each other after one and the same number of frames, more than one, almost always."""
    lengths = np.diff(np.flatnonzero(new))
    usual = int(np.bincount(lengths).argmax()) if len(lengths) >= REGULAR_HOLDS else 0
    return usual > 1 and float(np.mean(lengths == usual)) >= REGULAR


def _stands_out(
    scores: NDArray[np.float64], held: NDArray[np.bool_], contrast: float, edge_contrast: float
) -> NDArray[np.bool_]:
    """Keep only those runs of held frames whose neighbours stand out from them."""
    result = held.copy()
    result[:1] = False
    edges = np.flatnonzero(np.diff(np.concatenate(([0], result.astype(np.int8), [0]))))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        inside = max(median(scores[start:end].tolist()), 0.2)
        sides = [(start - 1, start)] if start > 1 else []
        sides += [(end, end - 1)] if end < len(scores) else []
        if any(scores[new] < max(contrast * inside, edge_contrast * scores[old]) for new, old in sides):
            result[start:end] = False
    return result


def _beat(held: NDArray[np.bool_], doubtful: NDArray[np.bool_]) -> int:
    """Frames per pose of a shot that is mostly held for one and the same time, 0 where there is no such time."""
    starts = np.flatnonzero(~held)
    lengths = np.diff(np.append(starts, len(held)))
    after = np.append(doubtful[1:], False)
    lengths = lengths[~doubtful[starts] & ~after[starts]]
    usual = int(np.bincount(lengths).argmax()) if len(lengths) else 0
    as_usual = lengths == usual
    return usual if usual > 1 and as_usual.mean() >= BEAT and usual * as_usual.sum() >= COVERED * len(held) else 0


def _keeps_the_beat(scores: Floats, doubtful: NDArray[np.bool_], beat: int) -> NDArray[np.bool_]:
    """Of the runs of frames that may be held the beats whose first frame and the next one's stand out a little."""
    result = np.zeros(len(scores), bool)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], doubtful.astype(np.int8), [0]))))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if not beat or (end - start + 1) % beat:
            continue
        for first in range(start, end, beat):
            last = first + beat - 1
            around = scores[[first - 1, min(last, len(scores) - 1)]]
            result[first:last] = around.min() >= ON_BEAT * scores[first:last].max()
    return result


def _divided(scores: Floats, held: NDArray[np.bool_], beat: int, duplicate: float) -> NDArray[np.bool_]:
    """Divide holds that are several poses: where a puppet hardly moves, it scores less than noise does elsewhere."""
    result = held.copy()
    starts = np.flatnonzero(~held)
    lengths = np.diff(np.append(starts, len(held)))
    for start, length in zip(starts, lengths, strict=True):
        inside = np.arange(start + 1, start + length)
        on_beat = inside[(inside - start) % beat == 0] if beat and length % beat == 0 else inside[:0]
        others = np.setdiff1d(inside, on_beat)
        if len(on_beat):
            enough = max(duplicate, ON_BEAT * float(scores[others].max()))
            result[on_beat[scores[on_beat] >= enough]] = False
        # Below this no frame can stand out, whatever is around it.
        for frame in others[scores[others] >= OFF_BEAT * SMALLEST_NEW]:
            around = np.arange(max(1, frame - NEAR), min(len(scores), frame + NEAR + 1))
            around = around[around != frame]
            low, high = (scores[around[held[around] == kind]] for kind in (True, False))
            level = max(float(np.median(low)) if len(low) else 0.0, SMALLEST_NEW)
            # An encoder mends a picture right after it changed: what is nearer to noise than to a pose is held.
            middle = np.sqrt(level * float(np.median(high))) if len(high) else np.inf
            result[frame] = scores[frame] < max(OFF_BEAT * level, middle)
    return result


def cadence(new: NDArray[np.bool_], fps: float, times: NDArray[np.float64] | None = None) -> Cadence:
    """Label, rate, hold histogram and phase of one shot [N] of new-pose flags.

    `times` [N] or, with that of the frame after the shot, [N + 1]: given where the frame rate varies, so that holds are
    counted in frames of the usual rate `fps`.
    """
    starts = np.flatnonzero(new)
    holds = np.diff(np.append(starts, len(new)))
    if times is not None and len(starts):
        end = times[len(new)] if len(times) > len(new) else times[-1] + 1 / fps
        holds = np.maximum(1, np.rint(np.diff(np.append(times[starts], end)) * fps).astype(np.int64))
    if not len(holds):
        return Cadence("ones", fps, {}, 0)
    lengths, counts = np.unique(holds, return_counts=True)
    histogram = {int(length): int(count) for length, count in zip(lengths, counts, strict=True)}
    inner = holds[:-1] if len(holds) > 2 else holds
    one = np.array([len(holds)])
    label = str(labels(holds, np.zeros(1, np.int64), one, np.array([fps]))[0])
    common = int(np.bincount(inner).argmax())
    phase = int(np.bincount(starts % common, minlength=1).argmax())
    return Cadence(label, float(len(starts) * fps / holds.sum()), histogram, phase)


def labels(
    holds: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64], fps: NDArray[np.float64]
) -> NDArray[np.str_]:
    """ones, twos, threes or mixed for each of C runs of holds, [C]; run c is `holds[starts[c]:][:counts[c]]`.

    Steady holds are named by their length. Where a conversion of frame rate has lengthened some of them evenly, time
    tells: 24 poses per second are ones, 12 twos and 8 threes.
    """
    result = np.full(len(starts), "mixed", dtype="<U6")
    if not len(starts):
        return result
    # The last hold is cut off by what follows, and does not speak for the animator.
    inner = np.ones(len(holds), bool)
    inner[(starts + counts - 1)[counts > 2]] = False
    number = np.maximum(np.add.reduceat(inner.astype(np.int64), starts), 1)
    period, drift = _evenly(holds, starts, counts)
    per_hold = np.rint(24 * period / fps)
    for length, name in ((3, "threes"), (2, "twos"), (1, "ones")):
        steady = np.add.reduceat(((holds == length) & inner).astype(np.int64), starts) >= STEADY * number
        even = (result == "mixed") & (drift <= EVEN) & (per_hold == length) & (period > length)
        result[steady | even] = name
    return result


def _evenly(holds: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Frames per hold of the straight line through the beginnings of each run's holds, and how far these stray from it.

    Holds that a conversion has lengthened evenly begin at rounded multiples of one period, within one frame of a line.
    Where the first hold begins is left out in longer runs: a transition may hide half of it.
    """
    place = np.arange(len(holds)) - np.repeat(starts, counts)
    before = np.cumsum(holds) - holds
    before = (before - np.repeat(before[starts], counts)).astype(np.float64)
    counted = (place > 0) | np.repeat(counts < 4, counts)
    x, y = np.where(counted, place, 0).astype(np.float64), np.where(counted, before, 0)
    number, sx, sy, sxx, sxy = (np.add.reduceat(values, starts) for values in (counted * 1.0, x, y, x * x, x * y))
    spread = number * sxx - sx * sx
    period = np.where(spread > 0, (number * sxy - sx * sy) / np.maximum(spread, 1), holds[starts])
    away = before - np.repeat(period, counts) * place
    high = np.maximum.reduceat(np.where(counted, away, -np.inf), starts)
    return period, high - np.minimum.reduceat(np.where(counted, away, np.inf), starts)
