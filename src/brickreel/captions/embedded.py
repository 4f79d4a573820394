"""The captioner without network or model: sentences about what can be measured, the same for the same pixels.

Its vocabulary is small and fixed, so that a small text encoder can learn it, and every word stands for a measured
quantity, so that the text really conditions a model.
"""

import math
import os
from collections.abc import Sequence

import numpy as np

from brickreel.captions import palette, pictures
from brickreel.captions.answer import Answer
from brickreel.captions.camera import Motion
from brickreel.captions.measure import SIDE, Measured, Region, measure

MODEL = "embedded-2"
"""Stands in the tables; the number changes with the wording or the measures."""
POSES = 8
"""Pictures looked at per clip."""

SIZES = ((0.02, "tiny"), (0.08, "small"), (0.25, "medium"), (0.5, "large"), (1.01, "huge"))
"""Upper end of the subject's share of the picture, and its word."""
LIGHTS = ((55, "dark"), (95, "dim"), (160, "soft"), (256, "bright"))
"""Upper end of the mean brightness, and its word."""
SPEEDS = ((0.08, "slowly"), (0.3, "steadily"), (math.inf, "quickly"))
"""Upper end of the speed in picture widths per second, and its word."""
_LEAST_PATH = 0.03  # of the picture: shorter paths are the noise of the measurement
_GROWTH = 1.5  # ratio of areas from which the subject grows or comes closer
_NEARS = 0.4  # what comes closer sinks at its lower edge by this share of its rise at the upper; what grows stands
_CLOSING = 0.08  # of the picture's width: change of the gap between two subjects that is told
_LAP = 1.6 * math.pi  # angle round its middle from which a path is a circle
_COMPASS = (
    "to the right", "down and to the right", "down", "down and to the left",
    "to the left", "up and to the left", "up", "up and to the right",
)  # fmt: skip

_FIXED = (
    "A subject", "Two subjects", "Several subjects", "and", "An empty set is shown", "is shown", "light", "dark", ".",
    "moves on the spot", "moves away", "moves back and forth", "moves up and down", "comes closer", "stays still",
    "moves in a circle", "grows", "shrinks", "come together", "move apart",
    "move", "come", "stay", "grow", "shrink", "are shown",
    "in the centre", "on the left", "on the right", "at the top", "at the bottom",
    "The background is and the ground is", "The light is", "The view moves closer", "The view is still",
)  # fmt: skip


def describe_clip(
    path: str | os.PathLike[str], frames: int, holds: Sequence[int] | None, in_poses: bool, fps: float, pose_rate: float
) -> Answer:
    """Caption a clip's file. Raises ValueError or OSError when it cannot be read."""
    rate = (pose_rate if in_poses else fps) or 24.0
    taken = pictures.take(path, pictures.pose_frames(POSES, frames, holds, in_poses), SIDE)
    return describe(np.stack([picture for _, picture in taken]), [index / rate for index, _ in taken])


def describe_still(path: str | os.PathLike[str]) -> Answer:
    """Caption a still's file. Raises ValueError or OSError when it cannot be read."""
    return describe(pictures.read_still(path, SIDE)[None], [0.0])


def describe(stack: np.ndarray, times_s: list[float]) -> Answer:
    """Caption RGB pictures [count, height, width, 3] taken at the given times; one picture is a still."""
    measured = measure(stack, times_s)
    subject, action = _subject(measured), _action(measured) if len(stack) > 1 else ""
    place = _place(measured.path[len(measured.path) // 2]) if measured.path else ""
    setting, light = _setting(measured), f"The light is {_word(LIGHTS, measured.luma)}."
    camera = _camera(measured) if len(stack) > 1 else ""
    first = " ".join(part for part in (subject, place, action or _shown(measured)) if part)
    sentences = [f"{first}." if measured.path else "An empty set is shown.", setting, light, camera]
    return Answer(
        outcome="described",
        caption=" ".join(sentence for sentence in sentences if sentence),
        subjects=subject,
        action=action,
        camera=camera,
        setting=setting,
        style=light,
        confidence=round(min(1.0, len(measured.path) / len(stack)), 2),
    )


def vocabulary() -> list[str]:
    """Every word that the captions are made of, and the full stop, for whoever trains a tokenizer on them."""
    phrases = [*palette.NAMES, *_COMPASS, *_FIXED]
    phrases += [word for words in (SIZES, LIGHTS, SPEEDS) for _, word in words]
    return sorted({word for phrase in phrases for word in phrase.split()})


def _word(table: Sequence[tuple[float, str]], value: float) -> str:
    return next(word for top, word in table if value < top)


def _subject(measured: Measured) -> str:
    if not measured.path:
        return ""
    size = _word(SIZES, float(np.median([region.area for region in measured.path])))
    words = f"{size} {' and '.join(measured.colours)}"
    count = _count(measured)
    return f"A {words} subject" if count == 1 else f"{'Two' if count == 2 else 'Several'} {words} subjects"


def _count(measured: Measured) -> int:
    return int(np.median([region.count for region in measured.path]))


def _shown(measured: Measured) -> str:
    return "are shown" if measured.path and _count(measured) > 1 else "is shown"


def _place(region: Region) -> str:
    across = "on the left" if region.x < 0.36 else "on the right" if region.x > 0.64 else ""
    along = "at the top" if region.y < 0.3 else "at the bottom" if region.y > 0.7 else ""
    return " ".join(part for part in (along, across) if part) or "in the centre"


def _action(measured: Measured) -> str:
    """How the subject moves, in pose time; empty without a subject."""
    if not measured.path:
        return ""
    singular = _one(measured)
    if _count(measured) == 1:
        return singular
    verb, _, rest = singular.partition(" ")
    return f"{verb.removesuffix('s')} {rest}".strip()


def _one(measured: Measured) -> str:
    """The action in the singular."""
    if not measured.moving:
        return "stays still"
    path = measured.path
    points = np.array([(region.x, region.y) for region in path])
    length = float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())
    net = points[-1] - points[0]
    shift = float(np.linalg.norm(net))
    speed = _word(SPEEDS, length / max(measured.times_s[-1] - measured.times_s[0], 1e-6))
    if told := _growth(path, measured.camera) or _gap(path):
        return told
    if length >= 3 * _LEAST_PATH and length > 2.5 * shift:
        spread = np.ptp(points, axis=0)
        if _laps(points) >= _LAP and spread.min() >= _LEAST_PATH:
            return f"moves {speed} in a circle"
        return f"moves {speed} {'back and forth' if spread[0] >= spread[1] else 'up and down'}"
    if shift < _LEAST_PATH:
        return "moves on the spot"
    octant = round(math.atan2(net[1], net[0]) / (math.pi / 4)) % 8
    return f"moves {speed} {_COMPASS[octant]}"


def _growth(path: Sequence[Region], camera: Motion) -> str:
    """Growing and shrinking, coming closer and moving away; empty when the size hardly changes."""
    ends = max(1, len(path) // 4)
    first, last = (np.mean([[r.area, r.top, r.bottom] for r in part], axis=0) for part in (path[:ends], path[-ends:]))
    # What the camera's own way closer has enlarged has not grown.
    ratio = last[0] / first[0] / (1 + camera.closer) ** 2
    if 1 / _GROWTH < ratio < _GROWTH:
        return ""
    rise, sink = (first[1] - last[1], last[2] - first[2]) if ratio > 1 else (last[1] - first[1], first[2] - last[2])
    nears = not camera.moves and sink > _LEAST_PATH and sink > _NEARS * rise
    return ("comes closer" if nears else "grows") if ratio > 1 else ("moves away" if nears else "shrinks")


def _gap(path: Sequence[Region]) -> str:
    """What several subjects do to the distance between them; empty when it stays, or for one subject."""
    widths = [region.right - region.left for region in path if region.count > 1]
    if len(widths) < len(path) / 2:
        return ""
    change = float(np.mean(widths[-2:]) - np.mean(widths[:2]))
    return "" if abs(change) < _CLOSING else "moves apart" if change > 0 else "comes together"


def _laps(points: np.ndarray) -> float:
    """Angle in radians through which a path turns round its middle."""
    x, y = (points - points.mean(axis=0)).T
    return float(abs(np.unwrap(np.arctan2(y, x))[-1] - np.arctan2(y[0], x[0])))


def _setting(measured: Measured) -> str:
    if measured.ground == measured.backdrop:
        return f"The background is {measured.backdrop}."
    return f"The background is {measured.backdrop} and the ground is {measured.ground}."


def _camera(measured: Measured) -> str:
    if not measured.camera.moves:
        return "The view is still."
    return f"The view moves {measured.camera.direction}".strip() + "."
