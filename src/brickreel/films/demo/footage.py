"""From a film's screenplay to its frames, and the truth about each of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from brickreel.films.demo.draw import Picture, Renderer
from brickreel.films.demo.scenes import SCENES, SETS, camera_path
from brickreel.films.demo.screenplay import CADENCES, DISSOLVE_FRAMES, FPS, Film, Shot, Title


@dataclass
class Truth:
    """What is true of a film, filled while its frames are made. Frames count in decoding order, ends exclusive."""

    shots: list[dict[str, Any]] = field(default_factory=list)
    transitions: list[dict[str, Any]] = field(default_factory=list)
    poses: list[int] = field(default_factory=list)
    """Per frame: the number of its pose in its shot; -1 inside a dissolve."""
    ticks: list[int] = field(default_factory=list)
    """Per frame: its time in 1/24 s."""


@dataclass(frozen=True)
class _Take:
    """The frames of one shot or title: an image and its pose for every 1/24 s."""

    part: Shot | Title
    images: list[Picture]
    pose_of: list[int]


def frames(film: Film, width: int, height: int, truth: Truth) -> Iterator[tuple[int, Picture]]:
    """Draw a film frame by frame, (time in 1/24 s, RGB [height, width, 3]), and note the truth on the way."""
    bars = round(height * film.letterbox / 2)
    inner = Renderer(width, height - 2 * bars)
    noise = np.random.default_rng(len(film.name))
    boil = np.random.default_rng(len(film.title))
    takes = (_take(part, inner) for part in film.parts)
    tail: list[Picture] = []
    take = next(takes, None)
    while take is not None:
        following = next(takes, None)
        joined = _dissolve_length(take, following)
        _enter(len(tail), truth)
        clock = truth.ticks[-1] + 1 if truth.ticks else 0
        for index, image in enumerate(tail):
            level = (index + 1) / (len(tail) + 1)
            mixed = cv2.addWeighted(image, 1 - level, take.images[take.pose_of[index]], level, 0)
            truth.poses.append(-1)
            truth.ticks.append(clock + index)
            yield clock + index, _finish(np.asarray(mixed, dtype=np.uint8), film, bars, 1.0, noise)
        first, last = len(tail), len(take.pose_of) - joined
        start = len(truth.poses)
        for index in _kept(film, take, first, last):
            light = 1 + (boil.uniform(-1, 1) * take.part.boil if isinstance(take.part, Shot) else 0.0)
            truth.poses.append(take.pose_of[index])
            truth.ticks.append(clock + index)
            yield clock + index, _finish(take.images[take.pose_of[index]], film, bars, light, noise)
        truth.shots.append(_describe(take, start, truth))
        tail = [take.images[pose] for pose in take.pose_of[last:]]
        take = following


def _dissolve_length(take: _Take, following: _Take | None) -> int:
    """Frames that two shots share: none at a cut, fewer than usual where a shot is short."""
    if following is None or not isinstance(following.part, Shot) or following.part.enter != "dissolve":
        return 0
    return min(DISSOLVE_FRAMES, len(take.pose_of) // 4, len(following.pose_of) // 4)


def _take(part: Shot | Title, renderer: Renderer) -> _Take:
    if isinstance(part, Title):
        return _Take(part, [_card(part, renderer.width, renderer.height)], [0] * part.frames)
    rng = np.random.default_rng(part.seed)
    place = SETS[part.place]
    scene = SCENES[part.scene](rng, part.poses, place)
    cameras = camera_path(scene, rng, part.poses, part.move, part.shake)
    light = 1 + rng.uniform(-1, 1, part.poses) * part.flicker
    images = [
        renderer.picture(scene.parts(pose), cameras[pose], place, float(light[pose])) for pose in range(part.poses)
    ]
    rhythm = CADENCES[part.cadence]
    holds = [rhythm[pose % len(rhythm)] for pose in range(part.poses)]
    # What moves where no camera sees it is no pose: the one before is held on.
    seen = list(range(part.poses))
    for pose in range(1, part.poses):
        if np.array_equal(images[pose], images[pose - 1]):
            seen[pose] = seen[pose - 1]
    return _Take(part, images, [seen[pose] for pose, hold in enumerate(holds) for _ in range(hold)])


def _kept(film: Film, take: _Take, first: int, last: int) -> Iterator[int]:
    """The frames that are written: all, or in a film of variable rate no holds in the second half of a shot."""
    for index in range(first, last):
        held = index > first and take.pose_of[index] == take.pose_of[index - 1]
        if not (film.variable_rate and isinstance(take.part, Shot) and held and index > (first + last) // 2):
            yield index


def _finish(image: Picture, film: Film, bars: int, light: float, noise: np.random.Generator) -> Picture:
    """Boil, camera noise and black bars."""
    if light != 1.0:
        image = np.asarray(cv2.convertScaleAbs(image, alpha=light), dtype=np.uint8)
    if film.grain:
        rows, columns = image.shape[:2]
        grain = (noise.standard_normal((rows // 2 + 1, columns), np.float32) * film.grain).astype(np.int16)
        grain = np.concatenate([grain, grain[::-1, ::-1]])[:rows, :, None]
        image = np.clip(image + grain, 0, 255).astype(np.uint8)
    return np.asarray(cv2.copyMakeBorder(image, bars, bars, 0, 0, cv2.BORDER_CONSTANT), dtype=np.uint8)


def _card(title: Title, width: int, height: int) -> Picture:
    """White letters with a shadow on the paper of a set."""
    place = SETS[title.place]
    rows = np.linspace(0, 1, height)[:, None, None]
    paper = np.array(place.plate) * (0.85 - 0.35 * rows) * np.ones((1, width, 1))
    card = np.ascontiguousarray(paper.astype(np.uint8))
    size = 0.62 * width / (len(title.text) + 4) / 11
    thick = max(1, round(size * 3))
    (wide, high), _ = cv2.getTextSize(title.text, cv2.FONT_HERSHEY_DUPLEX, size, thick)
    at = ((width - wide) // 2, (height + high) // 2)
    drop = max(1, round(height / 120))
    for offset, colour in ((drop, (20, 20, 24)), (0, (250, 248, 240))):
        spot = (at[0] + offset, at[1] + offset)
        cv2.putText(card, title.text, spot, cv2.FONT_HERSHEY_DUPLEX, size, colour, thick, cv2.LINE_AA)
    return card


def _enter(dissolve: int, truth: Truth) -> None:
    """Note what leads into a shot: a cut before its first frame, or the range of the frames of a dissolve."""
    here = len(truth.poses)
    if here:
        truth.transitions.append({"kind": "dissolve" if dissolve else "cut", "start": here, "end": here + dissolve})


def _describe(take: _Take, start: int, truth: Truth) -> dict[str, Any]:
    """The truth of one shot: clean frames only, holds in frames, and the rate of poses in time."""
    end = len(truth.poses)
    own = np.array(truth.poses[start:end])
    firsts = np.flatnonzero(np.diff(own, prepend=own[0] - 1))
    seconds = (truth.ticks[-1] + 1 - truth.ticks[start]) / FPS
    part = take.part
    row: dict[str, Any] = {"start": start, "end": end, "kind": "title" if isinstance(part, Title) else "scene"}
    if isinstance(part, Title):
        return {**row, "scene": "title", "description": f"A title card reads {part.text}.", "cadence": "still"} | {
            "pose_frames": [start],
            "holds": [end - start],
            "pose_rate": 1 / seconds,
        }
    scene = SCENES[part.scene](np.random.default_rng(part.seed), part.poses, SETS[part.place])
    return row | {
        "scene": part.scene,
        "place": SETS[part.place].name,
        "seed": part.seed,
        "description": scene.description,
        "cadence": part.cadence,
        "pose_frames": [start + int(index) for index in firsts],
        "holds": [int(hold) for hold in np.diff(firsts, append=len(own))],
        "pose_rate": len(firsts) / seconds,
        "camera": part.move,
        "shake": part.shake,
        "flicker": part.flicker,
        "boil": part.boil,
    }
