"""What the tiny model learns from, drawn on the spot: stills for the autoencoder, clips for the transformer."""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from brickreel.captions import embedded
from brickreel.films import shapes
from brickreel.films.demo.draw import Renderer
from brickreel.films.demo.scenes import MOVES, SCENES, SETS, camera_path

SIDE = 64
FRAMES = 16
BRICKS_SEED = 1_000_003  # apart from every seed that a demo film draws with
MEASURED = 0.75  # of the captions, measured as those of a real film are; the rest is the generator's own words


def stills(count: int, seed: int) -> NDArray[np.uint8]:
    """Pictures [count, SIDE, SIDE, 3], half of shapes and half of bricks, in turn."""
    pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
    bricks = brick_stills((count + 1) // 2, seed)
    for index in range(count):
        if index % 2:
            rng = np.random.default_rng([seed, 1, index])
            pictures[index] = shapes.clip(rng, frames=1, side=SIDE).frames[0]
        else:
            pictures[index] = next(bricks)
    return pictures


def brick_stills(count: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Poses of the demo's scenes, each with its own cast, cut square as the demo's films are for training."""
    renderer = Renderer(SIDE * 32 // 9, SIDE * 2)
    margin = (renderer.width - renderer.height) // 2
    poses = 24
    for index in range(count):
        rng = np.random.default_rng([BRICKS_SEED, seed, index])
        place = SETS[int(rng.integers(len(SETS)))]
        scene = SCENES[str(rng.choice(list(SCENES)))](rng, poses, place)
        camera = camera_path(scene, rng, poses, str(rng.choice(MOVES)), 0.0)
        pose = int(rng.integers(poses))
        picture = renderer.picture(scene.parts(pose), camera[pose], place, float(rng.uniform(0.93, 1.07)))
        square = picture[:, margin : margin + renderer.height]
        yield np.asarray(cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def captioned(count: int, frames: int, seed: int) -> Iterator[tuple[shapes.Clip, str]]:
    """Clips of shapes with their captions; with one frame, stills. A pure function of the seed."""
    for index in range(count):
        rng = np.random.default_rng([seed, frames, index])
        clip = shapes.clip(rng, frames=frames, side=SIDE)
        yield clip, caption(clip, rng)


def caption(clip: shapes.Clip, rng: np.random.Generator) -> str:
    """What the embedded captioner measures in a clip, or what the generator says of it: a model learns both."""
    if len(clip.frames) > 1 and rng.random() >= MEASURED:
        return clip.text
    looked_at = np.linspace(0, len(clip.frames) - 1, embedded.POSES).round().astype(int)
    chosen = np.unique(looked_at)
    return embedded.describe(clip.frames[chosen], [int(index) / clip.rate for index in chosen]).caption
