"""Drawn scenes: a coloured thing on a ground before a backdrop, moving on a known path."""

import numpy as np

from brickreel.films import video

COLOURS = {
    "red": (200, 30, 30),
    "yellow": (235, 205, 40),
    "blue": (40, 70, 200),
    "green": (50, 150, 60),
    "purple": (120, 50, 150),
    "sky": (150, 200, 240),
    "white": (240, 240, 240),
}


def picture(x, y=0.6, size=0.2, thing="red", ground="green", backdrop="sky", height=180, width=320, light=1.0):
    """RGB [height, width, 3]; x, y: centre of the thing as shares; size: its side as a share of the height."""
    scene = np.empty((height, width, 3), np.float64)
    scene[:] = COLOURS[backdrop]
    scene[height * 2 // 3 :] = COLOURS[ground]
    half = max(1, round(size * height / 2))
    top, left = round(y * height) - half, round(x * width) - half
    scene[max(0, top) : top + 2 * half, max(0, left) : left + 2 * half] = COLOURS[thing]
    noise = np.random.default_rng(0).normal(0, 1.5, scene.shape)
    return np.clip(scene * light + noise, 0, 255).astype(np.uint8)


def write_clip(path, xs, ys=None, fps=24.0, hold=2, **look):
    """Write a clip whose thing passes through xs (and ys), each pose held; returns (frames, holds)."""
    ys = [0.6] * len(xs) if ys is None else ys
    holds = [hold] * len(xs)
    frames = video.write(path, (picture(x, y, **look) for x, y in zip(xs, ys, strict=True)), fps, holds)
    return frames, holds
