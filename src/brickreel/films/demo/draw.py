"""A small software renderer: convex parts with studs, perspective, painter's order, soft shadows on the ground.

World: x to the right, y away from the viewer, z up, one unit per stud pitch. Pictures are drawn at twice the size and
averaged down, which is the anti-aliasing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

SUPERSAMPLE = 2
SHIFT = 4  # fractional bits of OpenCV's polygon coordinates
NEAR = 0.5  # nothing is closer to the eye than this
STUD_RADIUS, STUD_HEIGHT, STUD_SIDES = 0.3, 0.2, 10
LIGHT = np.array([-0.45, -0.5, 0.74])  # towards the lamp
AMBIENT, DIFFUSE = 0.5, 0.62


@dataclass(frozen=True)
class Mesh:
    """A convex solid: `vertices` [V, 3]; `corners` lists the vertices of all faces, each beginning at `starts`."""

    vertices: Array
    corners: NDArray[np.int64]
    starts: NDArray[np.int64]


@cache
def prism(sides: int, bottom: float, top: float, height: float) -> Mesh:
    """A prism or truncated cone on a regular polygon around the z axis, standing on z = 0."""
    angles = (np.arange(sides) + 0.5) * 2 * np.pi / sides
    ring = np.stack([np.cos(angles), np.sin(angles)], 1)
    return _frustum(ring * bottom, ring * top, height)


@cache
def box(width: float, depth: float, height: float, taper: float = 1.0) -> Mesh:
    """A box standing on z = 0 around the z axis; `taper` shrinks its top."""
    ring = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * [width, depth]
    return _frustum(ring, ring * [taper, 1.0], height)


def _frustum(bottom: Array, top: Array, height: float) -> Mesh:
    count = len(bottom)
    low = np.concatenate([bottom, np.zeros((count, 1))], 1)
    high = np.concatenate([top, np.full((count, 1), height)], 1)
    faces = [list(range(count, 2 * count)), list(range(count - 1, -1, -1))]
    faces += [[i, (i + 1) % count, count + (i + 1) % count, count + i] for i in range(count)]
    starts = np.cumsum([0] + [len(face) for face in faces])
    return Mesh(np.concatenate([low, high]), np.concatenate([np.array(face) for face in faces]), starts)


@dataclass(frozen=True)
class Part:
    """A mesh at a place: turned by `pitch` about y, `roll` about x, `yaw` about z (radians), then moved to `at`."""

    mesh: Mesh
    at: tuple[float, float, float]
    colour: Colour
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    studs: tuple[tuple[float, float, float], ...] = ()
    marks: tuple[tuple[float, float, float], ...] = ()
    """Dark dots on the surface, such as eyes: drawn where they face the viewer."""

    def rotation(self) -> Array:
        """[3, 3], local to world."""
        return _rotation(self.yaw, self.pitch, self.roll)


def _rotation(yaw: float, pitch: float, roll: float) -> Array:
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    turn = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    swing = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    tilt = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    return turn @ swing @ tilt


@dataclass(frozen=True)
class Camera:
    """Looks at `target` from `azimuth` (0 is from the front) and `elevation`, in radians, at `distance` studs."""

    target: tuple[float, float, float]
    azimuth: float
    elevation: float
    distance: float
    focal: float = 1.9
    """Focal length in picture heights."""

    def eye(self) -> Array:
        """Where the camera stands, [3]."""
        level = np.cos(self.elevation) * self.distance
        away = np.array(
            [np.sin(self.azimuth) * level, -np.cos(self.azimuth) * level, np.sin(self.elevation) * self.distance]
        )
        return np.array(self.target) + away

    def project(self, points: Array, width: int, height: int) -> Array:
        """Points [N, 3] to pixels [N, 2]."""
        eye, axes = _view(self)
        seen = (points - eye) @ axes
        depth = np.maximum(seen[:, 2:], NEAR)
        return seen[:, :2] / depth * self.focal * height + [width / 2, height / 2]


@lru_cache(maxsize=4)
def _view(camera: Camera) -> tuple[Array, Array]:
    """The eye [3] and, as columns, its axes: right, down, forward [3, 3]."""
    eye = camera.eye()
    forward = np.array(camera.target) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return eye, np.stack([right, -np.cross(right, forward), forward], 1)


@dataclass(frozen=True)
class Set:
    """Where a scene plays: the baseplate, the table below it and the paper behind it."""

    name: str
    plate: Colour
    table: Colour
    sky: Colour
    horizon: Colour
    size: tuple[int, int] = (22, 16)
    glow: float = 1.0
    """Brightness of the lamp."""


@dataclass
class Renderer:
    """Draws pictures of one size. The baseplate is drawn again only when the camera moves."""

    width: int
    height: int
    _kept: dict[tuple[Camera, str], Picture] = field(default_factory=dict)
    _lamps: dict[float, Picture] = field(default_factory=dict)

    def picture(self, parts: Sequence[Part], camera: Camera, place: Set, light: float = 1.0) -> Picture:
        """RGB [height, width, 3] of the parts on their set; `light` scales the brightness."""
        wide, high = self.width * SUPERSAMPLE, self.height * SUPERSAMPLE
        canvas = self._ground(camera, place, wide, high)
        canvas = _cast_shadows(canvas, parts, camera)
        _draw_parts(canvas, parts, camera)
        small = cv2.resize(canvas, (self.width, self.height), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.multiply(small, self._lamp(place.glow), scale=light / 190), dtype=np.uint8)

    def _ground(self, camera: Camera, place: Set, wide: int, high: int) -> Picture:
        key = (camera, place.name)
        if key not in self._kept:
            self._kept.clear()
            self._kept[key] = _draw_set(camera, place, wide, high)
        return self._kept[key].copy()

    def _lamp(self, glow: float) -> Picture:
        """Light falls off from the upper left of the middle; 190 stands for 1."""
        if glow not in self._lamps:
            y, x = np.mgrid[0 : self.height, 0 : self.width]
            away = np.hypot((x / self.width - 0.45) * 1.1, y / self.height - 0.42)
            level = 200 * glow * np.clip(1.06 - 0.55 * away**2, 0, 1.2)
            self._lamps[glow] = np.repeat(np.clip(level, 0, 255).astype(np.uint8)[..., None], 3, 2)
        return self._lamps[glow]


def _fill(canvas: Picture, polygon: Array, colour: Sequence[float]) -> None:
    points = np.round(polygon * (1 << SHIFT)).astype(np.int32)
    cv2.fillConvexPoly(canvas, points, colour, lineType=cv2.LINE_8, shift=SHIFT)


def _draw_set(camera: Camera, place: Set, wide: int, high: int) -> Picture:
    rows = np.linspace(0, 1, high)[:, None] ** 0.8
    paper = np.array(place.sky) * (1 - rows) + np.array(place.horizon) * rows
    horizon = float(camera.project(np.array([[-90.0, 90.0, -0.4]]), wide, high)[0, 1])
    fade = np.clip((np.arange(high) - horizon) / (0.75 * high), 0, 1)[:, None]
    column = (paper * (1 - fade) + np.array(place.table) * fade).astype(np.uint8)
    canvas = np.asarray(cv2.resize(column[:, None], (wide, high), interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    width, depth = place.size
    slab = Part(box(width, depth, 0.4), (0, 0, -0.4), place.plate)
    canvas = _cast_shadows(canvas, [slab], camera, ground=-0.4)
    studs = tuple((x + 0.5 - width / 2, depth / 2 - y - 0.5, 0.4) for y in range(depth) for x in range(width))
    _draw_parts(canvas, [Part(slab.mesh, slab.at, slab.colour, studs=studs)], camera)
    return canvas


def _cast_shadows(canvas: Picture, parts: Sequence[Part], camera: Camera, ground: float = 0.0) -> Picture:
    """Darken the ground where parts stand between it and the lamp, with an edge that is soft."""
    high, wide = canvas.shape[0] // 4, canvas.shape[1] // 4
    mask = np.zeros((high, wide), np.uint8)
    for part in parts:
        points = part.mesh.vertices @ part.rotation().T + part.at
        if points[:, 2].max() <= ground:
            continue
        lift = np.maximum(points[:, 2:] - ground, 0)
        fallen = points - lift * (LIGHT / LIGHT[2])
        outline = cv2.convexHull(camera.project(fallen, wide, high).astype(np.float32))[:, 0]
        _fill(mask, outline.astype(np.float64), (110,))
    if not mask.any():
        return canvas
    soft = 255 - cv2.GaussianBlur(mask, (0, 0), max(0.8, high / 90))
    soft = cv2.resize(soft, (canvas.shape[1], canvas.shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.multiply(canvas, cv2.cvtColor(soft, cv2.COLOR_GRAY2RGB), scale=1 / 255), dtype=np.uint8)


def _draw_parts(canvas: Picture, parts: Sequence[Part], camera: Camera) -> None:
    if not parts:
        return
    high, wide = canvas.shape[:2]
    eye = camera.eye()
    world = [part.mesh.vertices @ part.rotation().T + part.at for part in parts]
    flat = camera.project(np.concatenate(world), wide, high)
    ends = np.cumsum([len(points) for points in world])
    screen = np.split(flat, ends[:-1])
    for index in _painters_order(world, screen, eye):
        _draw_part(canvas, parts[index], world[index], screen[index], camera)


def _painters_order(world: Sequence[Array], screen: Sequence[Array], eye: Array) -> list[int]:
    """Far parts first: a part is drawn after every part that it can hide.

    Of two boxes that a plane along the axes separates, the one on the eye's side can hide the other and never the
    reverse. Where no plane separates them, or they hide each other in a ring, distance decides.
    """
    low = np.array([points.min(0) for points in world])
    high = np.array([points.max(0) for points in world])
    flat_low = np.array([points.min(0) for points in screen])
    flat_high = np.array([points.max(0) for points in screen])
    distance = np.linalg.norm((low + high) / 2 - eye, axis=1)
    slack = 1e-3
    below = (high[:, None] <= low[None] + slack) & (eye >= high - slack)[:, None]
    above = (low[:, None] >= high[None] - slack) & (eye <= low + slack)[:, None]
    can_hide = ~(below | above).any(2)
    meet = ((flat_low[:, None] < flat_high[None]) & (flat_low[None] < flat_high[:, None])).all(2)
    both = can_hide & can_hide.T
    after = np.where(both, distance[:, None] < distance[None], can_hide) & meet
    np.fill_diagonal(after, False)
    waiting = after.sum(1).astype(float)
    order = []
    for _ in range(len(world)):
        index = int(np.lexsort((-distance, waiting))[0])
        order.append(index)
        waiting -= after[:, index]
        waiting[index] = np.inf
    return order


def _shaded(colour: Colour, light: float) -> tuple[int, int, int]:
    """A colour under light: darker and a little cooler in shade, towards white above 1."""
    if light > 1:
        return tuple(int(channel + (255 - channel) * (light - 1)) for channel in colour)  # type: ignore[return-value]
    cool = (light, light, light + 0.06 * (1 - light))
    return tuple(int(channel * factor) for channel, factor in zip(colour, cool, strict=True))  # type: ignore[return-value]


def _draw_part(canvas: Picture, part: Part, world: Array, screen: Array, camera: Camera) -> None:
    mesh = part.mesh
    first, second, third = (mesh.corners[mesh.starts[:-1] + i] for i in range(3))
    edge, other = screen[second] - screen[first], screen[third] - screen[first]
    facing = edge[:, 0] * other[:, 1] - edge[:, 1] * other[:, 0] < 0
    one, two = world[second] - world[first], world[third] - world[first]
    normals = one[:, [1, 2, 0]] * two[:, [2, 0, 1]] - one[:, [2, 0, 1]] * two[:, [1, 2, 0]]
    normals /= np.sqrt((normals**2).sum(1, keepdims=True)) + 1e-9
    light = AMBIENT + DIFFUSE * np.maximum(normals @ LIGHT, 0)
    for face in np.flatnonzero(facing):
        polygon = screen[mesh.corners[mesh.starts[face] : mesh.starts[face + 1]]]
        _fill(canvas, polygon, _shaded(part.colour, light[face]))
        if len(mesh.starts) < 8:  # boxes have seams; round things do not
            points = np.round(polygon * (1 << SHIFT)).astype(np.int32)
            cv2.polylines(canvas, [points], True, _shaded(part.colour, 0.82 * light[face]), 1, cv2.LINE_AA, SHIFT)
    if part.studs:
        _draw_studs(canvas, part, camera)
    if part.marks:
        _draw_marks(canvas, part, camera)


@cache
def _ring() -> Array:
    angles = np.arange(STUD_SIDES) * 2 * np.pi / STUD_SIDES
    return np.stack([np.cos(angles), np.sin(angles), np.zeros(STUD_SIDES)], 1)


def _draw_studs(canvas: Picture, part: Part, camera: Camera) -> None:
    """Each stud: its shadow, its side, its top and a glint. Drawn from the far ones to the near ones."""
    high, wide = canvas.shape[:2]
    turn = part.rotation()
    centres = np.array(part.studs) @ turn.T + part.at
    centres = centres[np.argsort(-np.linalg.norm(centres - camera.eye(), axis=1))]
    ring = _ring() @ turn.T * STUD_RADIUS
    up = turn[:, 2] * STUD_HEIGHT
    glint = (ring * 0.38) + turn @ np.array([-0.09, -0.05, STUD_HEIGHT])
    shadow = ring * 1.05 + np.array([0.1, 0.11, 0.0])
    rings = np.stack([shadow, ring, ring + up, glint])  # [4, K, 3]
    flat = camera.project((centres[:, None, None] + rings).reshape(-1, 3), wide, high)
    flat = flat.reshape(len(centres), 4, STUD_SIDES, 2)
    points = np.round(flat * (1 << SHIFT)).astype(np.int32)
    shades = [_shaded(part.colour, level) for level in (0.74, 0.64, 1.0, 1.3)]
    low, top = points[:, 1], points[:, 2]
    rows, left, right = np.arange(len(points)), top[:, :, 0].argmin(1), top[:, :, 0].argmax(1)
    sides = np.stack([top[rows, left], top[rows, right], low[rows, right], low[rows, left]], 1)
    seen = (top[:, :, 0].max(1) > 0) & (top[:, :, 0].min(1) < wide << SHIFT) & (top[:, :, 1].min(1) < high << SHIFT)
    for stud, side in zip(points[seen], sides[seen], strict=True):
        cv2.fillConvexPoly(canvas, stud[0], shades[0], 8, SHIFT)
        cv2.fillConvexPoly(canvas, stud[1], shades[1], 8, SHIFT)
        cv2.fillConvexPoly(canvas, side, shades[1], 8, SHIFT)
        cv2.fillConvexPoly(canvas, stud[2], shades[2], 8, SHIFT)
        cv2.fillConvexPoly(canvas, stud[3], shades[3], 8, SHIFT)


def _draw_marks(canvas: Picture, part: Part, camera: Camera) -> None:
    high, wide = canvas.shape[:2]
    turn = part.rotation()
    places = np.array(part.marks) @ turn.T + part.at
    outward = (np.array(part.marks) * [1, 1, 0]) @ turn.T
    visible = ((camera.eye() - places) * outward).sum(1) > 0
    for spot, scale in zip(camera.project(places, wide, high)[visible], np.full(visible.sum(), 0.075), strict=True):
        radius = max(1.0, scale * camera.focal * high / camera.distance)
        cv2.circle(canvas, tuple(int(v * 16) for v in spot), int(radius * 16), (30, 26, 24), -1, cv2.LINE_AA, SHIFT)
