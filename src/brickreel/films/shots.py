"""Shot boundaries from small pictures: hard cuts as frames, dissolves and fades as ranges.

A hard cut changes where everything is, between two frames, far more than the frames around it do. A dissolve is a
blend: a picture in the middle is a weighted mean of a picture before and a picture after, which no motion is.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Rows and columns of the pictures compared here; the size that TransNetV2 takes as well.
SIZE = (27, 48)
# Frames on either side of a picture that a blend is looked for between.
REACHES = (3, 6, 12, 20)
# Frames beyond a blend's rough range at which the pure scenes are taken from.
EDGE = 6
# Context in frames that the scores of a frame depend on.
CONTEXT = 2 * max(REACHES)
# A frame whose score is at least this is the first of a new shot.
CUT = 0.5
# Cheap candidates for the network: nearly every real cut scores above this.
CANDIDATE = 0.12
# Beyond this the network is not asked.
CERTAIN = 0.9
# Share of the network's word in a doubtful cut's score.
NETWORK_SHARE = 0.7
# Network's probability from which a frame belongs to a blend, and frames of the shortest one.
IN_BLEND, SHORTEST_BLEND = 0.3, 3
# Grey levels: no pixel of a black bar is brighter; a pixel that changes by more shows something else.
BLACK, CHANGED = 30, 24


# Grey levels by which a picture differs from a repetition of itself; share of the frames of a blend that go on, where
# every frame was shown twice or more; what may be left of a plain blend near its ends.
REPEATED, STEADY_BLEND, PLAIN_ENDS = 0.5, 0.39, 0.08
# Of so many frames at most this share change where poses are held.
HELD_WINDOW, HELD_CHANGES = 6, 0.5


class Shot(NamedTuple):
    """Frames of one shot, `end` exclusive."""

    start: int
    end: int
    transition_in: str
    """start (of the film), cut, dissolve or fade."""


class Change(NamedTuple):
    """How each picture differs from the one before it; [N] each, 0 for the first."""

    difference: Floats
    """Mean absolute change in grey levels, after the change of light."""
    unlike: Floats
    """One minus the correlation of luma, 0 to 2."""
    spread: Floats
    """Share of the pixels that change by more than `CHANGED` grey levels."""


def change(pictures: NDArray[np.uint8]) -> Change:
    """Compare pictures [N, 27, 48, 3] with the ones before them. Black bars are left out: they are always alike."""
    count = len(pictures)
    result = Change(*(np.zeros(count, np.float32) for _ in Change._fields))
    if count > 1:
        seen = pictures[..., 0].max(axis=(0, 2)) > BLACK
        pictures = pictures[:, seen] if seen.any() else pictures
        luma = pictures[..., 0].reshape(count, -1).astype(np.float32)
        mean = luma.mean(axis=1, keepdims=True) + 4
        luma_change = np.abs(np.diff(luma * (mean.mean() / mean), axis=0))
        chroma = pictures[..., 1:].astype(np.int16)
        chroma_change = np.abs(np.diff(chroma, axis=0)).sum(axis=3).reshape(count - 1, -1)
        result.difference[1:] = luma_change.mean(axis=1) + chroma_change.mean(axis=1) / 2
        result.unlike[1:] = unlikeness(luma[:-1], luma[1:])
        result.spread[1:] = (luma_change + chroma_change > CHANGED).mean(axis=1)
    return result


def unlikeness(first: Floats, second: Floats) -> Floats:
    """One minus the correlation of rows [N, pixels]; even pictures are like each other and unlike all others."""
    a = first - first.mean(axis=1, keepdims=True)
    b = second - second.mean(axis=1, keepdims=True)
    # Two grey levels of noise keep an even picture from correlating with anything by chance.
    norm = np.sqrt((np.square(a).mean(axis=1) + 4) * (np.square(b).mean(axis=1) + 4))
    flat = 4 / norm
    return 1 - (a * b).mean(axis=1) / norm - flat.clip(0, 1)


def cut_scores(found: Change) -> Floats:
    """Score 0 to 1 of a hard cut before each frame: large, everywhere in the picture, and alone among its neighbours.

    Held frames differ by nothing, so that a frame is compared with the largest changes around it, not with their mean.
    Two sets of one film may look alike as a whole (a sky over a ground): then the spread of the change tells.
    """
    scores = np.zeros(len(found.difference), np.float32)
    for frame in np.flatnonzero((found.difference > 4) & ((found.unlike > 0.1) | (found.spread > 0.3))):
        before, after = found.difference[max(1, frame - 12) : frame], found.difference[frame + 1 : frame + 13]
        around = np.sort(np.concatenate((before, after)))
        usual = float(around[-min(3, len(around))]) if len(around) else 0.0
        alone = _rise(found.difference[frame] / (usual + 1.5), 1.5, 3.0)
        structure = max(_rise(found.unlike[frame], 0.1, 0.35), _rise(found.spread[frame], 0.3, 0.6))
        scores[frame] = min(1.0, found.difference[frame] / 12) * alone * structure
    return scores


def _rise(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (float(value) - low) / (high - low)))


def blends(pictures: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """For each picture [N, 27, 48, 3] whether it is a blend: 0 no, 1 of two scenes, 2 with an even picture.

    And whether it may be one, which the network is asked about: moving puppets keep a dissolve from being exact.
    """
    count = len(pictures)
    kinds = np.zeros(count, np.int8)
    doubtful = np.zeros(count, bool)
    flat = _pooled(pictures)
    changed = _changed(flat)
    for reach in REACHES:
        if count <= 2 * reach:
            continue
        before, after = flat[: -2 * reach], flat[2 * reach :]
        kind, maybe = _blend_between(before, flat[reach:-reach], after)
        quarter = max(1, reach // 2)
        early, early_rest = _mixture(before, flat[reach - quarter : count - reach - quarter], after)
        late, late_rest = _mixture(before, flat[reach + quarter : count - reach + quarter], after)
        rising = (late - early > 0.15) & (early > 0.02) & (late < 0.98)
        # A blend goes on from frame to frame, and is one all the way; a held puppet half-way is neither.
        share = np.convolve(changed, np.full(2 * quarter + 1, 1 / (2 * quarter + 1)), mode="same")[reach:-reach]
        plain = rising & (share >= STEADY_BLEND) & (np.maximum(early_rest, late_rest) < PLAIN_ENDS)
        for centre in np.flatnonzero((kind > 0) & plain):
            spread = slice(centre + reach - quarter, centre + reach + quarter + 1)
            kinds[spread] = np.maximum(kinds[spread], kind[centre])
        for start, end in runs(maybe & rising):
            # One picture alone is a puppet between two places, not a blend.
            if end - start > 1:
                doubtful[start + reach - quarter : end + reach + quarter] = True
    return _exact_ranges(flat, kinds), doubtful


def _pooled(pictures: NDArray[np.uint8]) -> Floats:
    """[N, 13 x 24 x 3]: means of 2 x 2 pixels, which say as much of a blend for a quarter of the work."""
    even = pictures[:, : SIZE[0] // 2 * 2].astype(np.float32)
    even = even[:, 0::2] + even[:, 1::2]
    even = even[:, :, 0::2] + even[:, :, 1::2]
    return np.asarray(even / 4, np.float32).reshape(len(pictures), -1)


def _changed(flat: Floats) -> NDArray[np.bool_]:
    """Whether each picture differs from the one before it."""
    changed = np.ones(len(flat), bool)
    changed[1:] = np.abs(np.diff(flat, axis=0)).mean(axis=1) > REPEATED
    return changed


def _exact_ranges(flat: Floats, kinds: NDArray[np.int8]) -> NDArray[np.int8]:
    """Move both ends of each blend to where the share of the new scene leaves 0 and reaches 1."""
    exact = np.zeros_like(kinds)
    for start, end in runs(kinds > 0):
        first, last = max(0, start - EDGE), min(len(flat), end + EDGE)
        before, after = flat[first : first + 1], flat[last - 1 : last]
        share = _share(before, flat[first:last], after)
        mixed = np.flatnonzero((share > 0.04) & (share < 0.96))
        if len(mixed):
            exact[first + mixed[0] : first + mixed[-1] + 1] = kinds[start:end].max()
    return exact


def _share(before: Floats, middle: Floats, after: Floats) -> Floats:
    """Least-squares share of `after` in `middle`, per row."""
    return _mixture(before, middle, after)[0]


def _mixture(before: Floats, middle: Floats, after: Floats) -> tuple[Floats, Floats]:
    """Least-squares share of `after` in `middle`, per row, and what is left of `middle`, relative to the whole way."""
    span = after - before
    power = np.maximum(np.square(span).mean(axis=1), 1e-6)
    share = ((middle - before) * span).mean(axis=1) / power
    return share, np.square(middle - before - share[:, None] * span).mean(axis=1) / power


def judge_blends(kinds: NDArray[np.int8], doubtful: NDArray[np.bool_], many: Floats) -> NDArray[np.int8]:
    """Blends after the network's word: `many` [N] is its probability that a frame is in a transition.

    It knows the ranges better, and settles the doubtful ones; a plain blend stands even if it sees none.
    """
    result = kinds.copy()
    for start, end in runs(many > IN_BLEND):
        if end - start < SHORTEST_BLEND or many[start:end].max() < 0.5:
            continue
        if not (doubtful[start:end].any() or kinds[start:end].any()):
            continue
        kind = max(1, int(kinds[start:end].max()))
        for first, last in runs(result > 0):
            if first < end and start < last:
                result[first:last] = 0
        result[start:end] = kind
    return result


def _blend_between(before: Floats, middle: Floats, after: Floats) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    span = after - before
    power = np.square(span).mean(axis=1)
    share, rest = _mixture(before, middle, after)
    luma = slice(0, None, 3)
    unlike = unlikeness(before[:, luma], after[:, luma])
    even = np.minimum(before[:, luma].std(axis=1), after[:, luma].std(axis=1)) < 6
    between = (power > 60) & (share > 0.25) & (share < 0.75)
    plain = between & (rest < 0.06)
    kind = np.where(plain & even, 2, np.where(plain & (unlike > 0.35), 1, 0)).astype(np.int8)
    return kind, between & (rest < 0.1) & (unlike > 0.2)


def transitions(scores: Floats, kinds: NDArray[np.int8]) -> list[str]:
    """What leads into each frame: "", "cut", "dissolve" or "fade". The frames of a blend all carry its name.

    A cut inside a blend is part of it. Runs shorter than two frames are no blend.
    """
    names = [""] * len(scores)
    for start, end in runs(kinds > 0):
        if end - start >= SHORTEST_BLEND:
            kind = "fade" if (kinds[start:end] == 2).mean() > 0.5 else "dissolve"
            names[start:end] = [kind] * (end - start)
    for frame in np.flatnonzero(scores >= CUT):
        if not names[frame] and frame:
            names[frame] = "cut"
    return names


def trimmed(kinds: NDArray[np.int8], pictures: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Blends without the holds at their ends: a blend changes from frame to frame, and before and after it poses are
    held. A repeated frame that a conversion of rate has put into a blend ends nothing."""
    if not kinds.any():
        return kinds
    changed = _changed(_pooled(pictures))
    result = kinds.copy()
    for start, end in runs(kinds > 0):
        middle = (start + end) // 2
        for frame in range(middle, end):
            if not changed[frame] and changed[frame : frame + HELD_WINDOW].mean() <= HELD_CHANGES:
                # The frame before it is the pose that it repeats.
                result[frame - 1 : end] = 0
                break
        for frame in range(middle, start, -1):
            if not changed[frame] and changed[max(0, frame - HELD_WINDOW + 1) : frame + 1].mean() <= HELD_CHANGES:
                result[start : frame + 1] = 0
                break
    return result


def runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(start, end) of each run of True, `end` exclusive."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], np.asarray(flags, np.int8), [0]))))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def shots(names: list[str]) -> list[Shot]:
    """Shots from `transitions`: frames of blends belong to none."""
    found: list[Shot] = []
    start, inside, transition = 0, False, "start"
    for frame, name in enumerate([*names, "end"]):
        if inside and name:
            found.append(Shot(start, frame, transition))
            inside = False
        if name in ("dissolve", "fade"):
            transition = name
        elif name != "end" and not inside:
            start, inside = frame, True
            transition = "cut" if name == "cut" else transition
    return found
