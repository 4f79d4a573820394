"""What the scenes are made of: bricks, figures, vehicles, trees. Everything returns parts for the renderer."""

from collections.abc import Sequence

import numpy as np

from brickreel.films.demo.draw import Colour, Part, box, prism

BRICK, PLATE = 1.2, 0.4  # heights in stud pitches

COLOURS: dict[str, Colour] = {
    "red": (204, 44, 36),
    "orange": (240, 132, 40),
    "yellow": (248, 206, 50),
    "lime": (160, 200, 60),
    "green": (44, 142, 78),
    "teal": (40, 168, 170),
    "blue": (22, 104, 190),
    "purple": (122, 70, 160),
    "pink": (236, 140, 176),
    "brown": (120, 76, 48),
    "tan": (222, 202, 158),
    "white": (240, 240, 236),
    "grey": (150, 152, 158),
    "black": (44, 46, 54),
}
SKIN = (250, 205, 70)


def studs(width: int, depth: int, height: float) -> tuple[tuple[float, float, float], ...]:
    """Stud places on top of a brick that stands around its own axis."""
    return tuple(
        (x + 0.5 - width / 2, y + 0.5 - depth / 2, height) for y in reversed(range(depth)) for x in range(width)
    )


def brick(
    colour: str,
    at: tuple[float, float, float],
    width: int = 2,
    depth: int = 2,
    height: float = BRICK,
    yaw: float = 0.0,
    covered: bool = False,
    roll: float = 0.0,
) -> Part:
    """A studded brick whose bottom middle stands at `at`; `covered` leaves out studs that no one sees."""
    shape = box(width * 0.985, depth * 0.985, height)
    return Part(shape, at, COLOURS[colour], yaw, 0.0, roll, () if covered else studs(width, depth, height))


def turned(at: Sequence[float], yaw: float, offset: Sequence[float]) -> tuple[float, float, float]:
    """The place of something that sits at `offset` on an object at `at`, turned by `yaw`."""
    c, s = np.cos(yaw), np.sin(yaw)
    return (
        float(at[0] + c * offset[0] - s * offset[1]),
        float(at[1] + s * offset[0] + c * offset[1]),
        float(at[2] + offset[2]),
    )


def figure(
    at: tuple[float, float, float],
    yaw: float,
    shirt: str,
    trousers: str,
    hat: str,
    stride: float = 0.0,
    arms: tuple[float, float] = (0.0, 0.0),
    nod: float = 0.0,
) -> list[Part]:
    """A minifigure that looks along +x when `yaw` is 0. `stride` and `arms` are angles of limbs in radians."""

    def place(x: float, y: float, z: float) -> tuple[float, float, float]:
        return turned(at, yaw, (x, y, z))

    def limb(mesh_height: float, hip: tuple[float, float, float], swing: float) -> tuple[float, float, float]:
        """The bottom of a limb that hangs from `hip` and swings by `swing`."""
        return place(hip[0] - mesh_height * np.sin(swing), hip[1], hip[2] - mesh_height * np.cos(swing))

    legs = [
        Part(box(0.75, 0.62, 1.25), limb(1.25, (0, side * 0.36, 1.3), swing), COLOURS[trousers], yaw, swing)
        for side, swing in ((1, stride), (-1, -stride))
    ]
    sleeves = [
        Part(box(0.5, 0.42, 1.15), limb(1.15, (0, side * 0.98, 2.75), swing), COLOURS[shirt], yaw, swing)
        for side, swing in ((1, arms[0]), (-1, arms[1]))
    ]
    hands = [
        Part(prism(8, 0.22, 0.22, 0.32), limb(1.4, (0, side * 0.98, 2.75), swing), SKIN, yaw, swing)
        for side, swing in ((1, arms[0]), (-1, arms[1]))
    ]
    hips = Part(box(0.8, 1.4, 0.32), place(0, 0, 1.18), COLOURS[trousers], yaw)
    chest = Part(box(0.85, 1.55, 1.35, 0.9), place(0, 0, 1.5), COLOURS[shirt], yaw)
    eyes = ((0.53, 0.2, 0.55), (0.53, -0.2, 0.55))
    mouth = tuple((0.54, y, 0.24 + abs(y) * 0.3) for y in (-0.15, 0.0, 0.15))
    head = Part(prism(12, 0.52, 0.52, 0.86), place(0, 0, 2.87 + nod), SKIN, yaw, marks=eyes + mouth)
    cap = Part(prism(12, 0.6, 0.5, 0.36), place(0, 0, 3.74 + nod), COLOURS[hat], yaw)
    peak = Part(box(0.5, 0.9, 0.12), place(0.62, 0, 3.76 + nod), COLOURS[hat], yaw)
    return [*legs, hips, *sleeves, *hands, chest, head, cap, peak]


def walking(
    phase: float, at: tuple[float, float, float], yaw: float, shirt: str, trousers: str, hat: str
) -> list[Part]:
    """A figure in mid-walk; `phase` in radians, one turn per two steps."""
    swing = 0.62 * np.sin(phase)
    lift = 0.1 * abs(np.cos(phase))
    return figure((at[0], at[1], at[2] + lift), yaw, shirt, trousers, hat, swing, (-0.8 * swing, 0.8 * swing))


def wheel(at: tuple[float, float, float], yaw: float, turn: float, side: int, radius: float = 0.8) -> list[Part]:
    """A wheel that faces +y (`side` 1) or -y (-1), with a bright spoke that shows its turning."""
    lying = -side * np.pi / 2
    tyre = Part(prism(12, radius, radius, 0.6), at, COLOURS["black"], yaw, 0.0, -lying)
    hub = Part(prism(10, radius * 0.6, radius * 0.55, 0.06), at, COLOURS["grey"], yaw, 0.0, lying)
    outside = turned(at, yaw, (0, side * 0.06, 0))
    return [tyre, hub, Part(box(radius * 1.1, 0.2, 0.06), outside, COLOURS["white"], yaw, turn, lying)]


def vehicle(at: tuple[float, float, float], yaw: float, kind: str, body: str, trim: str, turn: float) -> list[Part]:
    """A car, a truck or a bus that drives along +x; `turn` is the angle of its wheels."""
    length = {"car": 6, "truck": 8, "bus": 8}[kind]

    def piece(colour: str, x: float, z: float, width: int, depth: int, height: float, covered: bool = False) -> Part:
        return brick(colour, turned(at, yaw, (x, 0, z)), width, depth, height, yaw, covered)

    parts = [piece("grey", 0, 0.7, length, 4, PLATE, True)]
    if kind == "car":
        parts += [piece(body, -2, 1.1, 2, 4, BRICK), piece(body, 2, 1.1, 2, 4, BRICK)]
        parts += [piece("black", 0, 1.1, 2, 4, BRICK, True), piece(trim, 0, 2.3, 2, 4, BRICK)]
    elif kind == "truck":
        parts += [piece(body, 3, 1.1, 2, 4, BRICK, True), piece("black", 3, 2.3, 2, 4, BRICK * 0.8, True)]
        parts += [piece(body, 3, 2.3 + BRICK * 0.8, 2, 4, PLATE), piece(trim, -1, 1.1, 6, 4, PLATE, True)]
        parts += [piece(trim, -3, 1.5, 2, 4, BRICK), piece(trim, 0, 1.5, 4, 4, BRICK * 0.6)]
    else:
        parts += [piece(body, 0, 1.1, 8, 4, BRICK, True), piece("black", 0, 2.3, 8, 4, BRICK * 0.75, True)]
        parts += [piece(trim, 0, 2.3 + BRICK * 0.75, 8, 4, PLATE)]
    for x in (-length / 2 + 1.4, length / 2 - 1.4):
        for side in (-1, 1):
            parts += wheel(turned(at, yaw, (x, side * 2.1, 0.8)), yaw, turn, side)
    lamp = Part(prism(8, 0.28, 0.28, 0.1), turned(at, yaw, (length / 2, -1.3, 1.6)), COLOURS["yellow"], yaw, np.pi / 2)
    return [*parts, lamp]


def tree(at: tuple[float, float, float], leaf: str = "green", size: int = 3) -> list[Part]:
    """A trunk with plates of leaves that grow smaller upwards."""
    x, y, z = at
    parts = [Part(prism(10, 0.5, 0.45, 1.8), at, COLOURS["brown"])]
    for level in range(size):
        width = 2 * (size - level)
        parts.append(brick(leaf, (x, y, z + 1.8 + level * 0.9), width, width, 0.9))
    return parts
