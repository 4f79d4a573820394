"""Footage for a base model: smooth shapes that glide over smooth colours, with a sentence on each. Never bricks.

The tiny model that brickreel ships has learned video from these and nothing else, so that fine-tuning it on brick
films has something to show.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Points = NDArray[np.float64]

SUPERSAMPLE = 2
SHIFT = 4
RATES = (6.0, 8.0, 12.0, 24.0)  # frames per second that clips are shown at

COLOURS = {
    "red": (214, 40, 44),
    "orange": (244, 138, 34),
    "yellow": (246, 214, 58),
    "green": (52, 168, 78),
    "blue": (40, 104, 214),
    "purple": (142, 76, 196),
    "pink": (240, 150, 186),
    "brown": (122, 82, 50),
    "white": (242, 242, 240),
    "grey": (150, 150, 154),
    "black": (34, 34, 40),
}
SIZES = ((0.10, "tiny"), (0.16, "small"), (0.24, "medium"), (0.34, "large"))  # radius in picture heights
SPEEDS = ((0.06, "slowly"), (0.25, "steadily"), (0.7, "quickly"))  # picture widths per second
DIRECTIONS = (
    "to the right", "down and to the right", "down", "down and to the left",
    "to the left", "up and to the left", "up", "up and to the right",
)  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """RGB frames [T, side, side, 3] at `rate` frames per second, and what they show."""

    frames: Frames
    text: str
    rate: float


@dataclass(frozen=True)
class _Shape:
    kind: str
    colour: str
    rgb: tuple[int, int, int]
    radius: float
    path: Callable[[float], tuple[float, float]]
    spin: float
    words: str
    grow: float = 0.0


def clip(rng: np.random.Generator, frames: int = 16, side: int = 64) -> Clip:
    """Draw one clip; a pure function of the generator's state."""
    rate = float(rng.choice(RATES))
    seconds = frames / rate
    backdrop, setting = _backdrop(rng, side * SUPERSAMPLE)
    count = int(rng.choice([1, 1, 1, 1, 2]))
    shapes = [_shape(rng, seconds) for _ in range(count)]
    pictures = []
    for index in range(frames):
        canvas = backdrop.copy()
        for shape in shapes:
            _draw(canvas, shape, index / rate)
        pictures.append(cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA))
    first = shapes[-1]
    others = " Another shape moves behind it." if count > 1 else ""
    text = f"A {_size(first.radius)} {first.colour} {first.kind} {first.words}.{others} {setting}"
    return Clip(np.stack(pictures).astype(np.uint8), text, rate)


def _size(radius: float) -> str:
    return next((word for top, word in SIZES if radius < top), "huge")


def _tint(rng: np.random.Generator, name: str, spread: float = 18) -> tuple[int, int, int]:
    low = np.clip(np.array(COLOURS[name]) + rng.uniform(-spread, spread, 3), 0, 255)
    return int(low[0]), int(low[1]), int(low[2])


def _backdrop(rng: np.random.Generator, side: int) -> tuple[Frames, str]:
    """A gradient, or a ground that meets a sky, under soft light from one side."""
    above, below = rng.choice(list(COLOURS), 2, replace=False)
    top, bottom = np.array(_tint(rng, above), float), np.array(_tint(rng, below), float)
    pale = rng.uniform(0, 0.5)
    top = top * (1 - pale) + 255 * pale
    rows = (np.arange(side) + 0.5)[:, None] / side
    if rng.random() < 0.65:
        share = 1 / (1 + np.exp(-(rows - rng.uniform(0.3, 0.7)) * rng.choice([6.0, 14.0, 60.0])))
        setting = f"The background is {above} and the ground is {below}."
    else:
        share = rows * rng.uniform(0, 0.3)
        setting = f"The background is {above}."
    column = top * (1 - share) + bottom * share
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    glow = rng.uniform(0.75, 1.1) * (1 + 0.25 * (np.cos(angle) * x + np.sin(angle) * y) - 0.5 * (x**2 + y**2))
    return np.clip(column[:, None] * glow[..., None], 0, 255).astype(np.uint8), setting


def _shape(rng: np.random.Generator, seconds: float) -> _Shape:
    kind = str(rng.choice(["circle", "box", "ribbon"]))
    colour = str(rng.choice(list(COLOURS)))
    radius = float(rng.uniform(0.09, 0.32))
    path, words = _path(rng, seconds)
    spin = float(rng.uniform(-2.5, 2.5)) if rng.random() < 0.6 else 0.0
    grow = float(rng.choice([0.0, 0.0, 0.0, rng.uniform(-0.35, 0.5)])) / seconds
    return _Shape(kind, colour, _tint(rng, colour), radius, path, spin, words, grow)


def _path(rng: np.random.Generator, seconds: float) -> tuple[Callable[[float], tuple[float, float]], str]:
    """Where a shape's middle is at each moment, in shares of the picture, and words for it."""
    middle = rng.uniform(0.3, 0.7, 2)
    style = rng.choice(["line", "line", "swing", "circle", "spot"])
    fast = float(np.exp(rng.uniform(np.log(0.03), np.log(0.7))))
    travel = min(0.65, fast * seconds)
    speed = next((word for top, word in SPEEDS if travel / seconds < top), "quickly")
    if style == "line":
        octant = int(rng.integers(8))
        angle = octant * np.pi / 4 + rng.uniform(-0.3, 0.3)
        step = np.array([np.cos(angle), np.sin(angle)])

        def line(t: float) -> tuple[float, float]:
            x, y = middle + step * travel * (t / seconds - 0.5)
            return float(x), float(y)

        return line, f"moves {speed} {DIRECTIONS[octant]}"
    turn = float(rng.choice([-1, 1])) * fast * 2 * np.pi / 0.8
    reach = float(rng.uniform(0.08, 0.28))
    if style == "swing":
        level = rng.random() < 0.5

        def swing(t: float) -> tuple[float, float]:
            away = reach * np.sin(turn * t)
            return float(middle[0] + (away if level else 0)), float(middle[1] + (0 if level else away))

        return swing, f"moves {speed} {'back and forth' if level else 'up and down'}"
    if style == "circle":
        start = float(rng.uniform(0, 2 * np.pi))

        def ring(t: float) -> tuple[float, float]:
            return float(middle[0] + reach * np.cos(turn * t + start)), float(
                middle[1] + reach * np.sin(turn * t + start)
            )

        return ring, f"moves {speed} in a circle"
    return (lambda t: (float(middle[0]), float(middle[1]))), "moves on the spot"


def _draw(canvas: Frames, shape: _Shape, time_s: float) -> None:
    """A soft shadow, the shape, and a lighter side towards the light."""
    side = canvas.shape[0]
    x, y = shape.path(time_s)
    radius = shape.radius * (1 + shape.grow * time_s)
    outline = _outline(shape, time_s) * radius + [x, y]
    dark = tuple(int(channel * 0.72) for channel in shape.rgb)
    light = tuple(int(channel + (255 - channel) * 0.3) for channel in shape.rgb)
    shadow = canvas.copy()
    _fill(shadow, outline + 0.035, (20, 20, 24), side)
    cv2.addWeighted(shadow, 0.25, canvas, 0.75, 0, dst=canvas)
    _fill(canvas, outline, dark, side)
    middle = np.array([x, y])
    for share, colour in ((0.9, shape.rgb), (0.45, light)):
        _fill(canvas, (outline - middle) * share + middle - radius * (1 - share) * 0.35, colour, side)


def _outline(shape: _Shape, time_s: float) -> Points:
    angle = shape.spin * time_s
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if shape.kind == "circle":
        around = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        return np.stack([np.cos(around), np.sin(around)], 1)
    if shape.kind == "box":
        around = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        rounded = np.stack([np.cos(around), np.sin(around)], 1)
        return np.sign(rounded) * np.abs(rounded) ** 0.35 @ turn.T * 0.85
    along = np.linspace(-1.5, 1.5, 24)
    wave = 0.4 * np.sin(along * 2.4 + 3 * time_s)
    thick = 0.22 * np.sqrt(np.maximum(0.05, 1 - (along / 1.55) ** 2)) + 0.05
    upper, lower = np.stack([along, wave - thick], 1), np.stack([along, wave + thick], 1)
    return np.concatenate([upper, lower[::-1]]) @ turn.T


def _fill(canvas: Frames, points: Points, colour: tuple[int, ...], side: int) -> None:
    cv2.fillPoly(canvas, [np.round(points * side * (1 << SHIFT)).astype(np.int32)], colour, cv2.LINE_AA, SHIFT)
