"""The scenes: each draws its own cast and then says, pose by pose, what stands where.

A scene is a pure function of its generator: the same seed gives the same bricks, colours and movements.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from brickreel.films.demo import bricks
from brickreel.films.demo.bricks import BRICK, PLATE, brick
from brickreel.films.demo.draw import Camera, Part, Set

Place = tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """What one shot shows: `parts(pose)` for pose 0 to `poses` - 1, around `middle`, `wide` studs across."""

    description: str
    parts: Callable[[int], list[Part]]
    middle: Place
    wide: float


SETS = (
    Set("meadow", (76, 160, 78), (204, 186, 150), (170, 214, 240), (238, 246, 250)),
    Set("beach", (232, 208, 150), (96, 176, 206), (148, 212, 240), (252, 244, 222)),
    Set("street", (112, 118, 126), (168, 172, 176), (206, 222, 238), (244, 240, 232)),
    Set("night", (58, 66, 118), (48, 46, 84), (34, 30, 72), (122, 84, 140), glow=0.9),
    Set("studio", (226, 228, 230), (236, 232, 226), (222, 230, 238), (250, 248, 244)),
    Set("harbour", (44, 120, 196), (150, 190, 216), (250, 214, 178), (252, 236, 214)),
    Set("desert", (214, 140, 76), (226, 186, 130), (250, 206, 160), (252, 232, 204)),
    Set("orchard", (150, 196, 74), (184, 142, 98), (244, 226, 180), (250, 242, 218)),
    Set("workshop", (184, 60, 54), (122, 88, 62), (92, 70, 58), (176, 142, 108), glow=0.95),
)

BRIGHT = ("red", "orange", "yellow", "lime", "green", "teal", "blue", "purple", "pink", "white")


def pick(rng: np.random.Generator, count: int, place: Set) -> list[str]:
    """Different colours that stand out from the baseplate."""
    away = {name: np.abs(np.subtract(bricks.COLOURS[name], place.plate)).sum() for name in BRIGHT}
    names = [name for name in BRIGHT if away[name] > 120]
    return [str(name) for name in rng.choice(names, count, replace=False)]


def hand(rng: np.random.Generator, poses: int, size: float = 0.035) -> np.ndarray:
    """[poses, 3]: how far a hand misses the intended place and angle at each pose."""
    return rng.uniform(-size, size, (poses, 3))


def dropped(place: Place, age: float, steps: float, rise: float = 4.0) -> Place:
    """Where a brick is `age` poses after it came into view, on its way down to `place` in `steps` poses."""
    left = max(0.0, 1 - age / steps)
    return (place[0] + 1.2 * left, place[1] - 0.5 * left, place[2] + rise * left**1.5)


def building(
    bricks_: list[tuple[str, Place, int, int]], poses: int, steps: float, reverse: bool = False
) -> Callable[[int], list[Part]]:
    """Bricks (colour, place, width, depth) that arrive one after another, `steps` poses each, or leave in reverse."""
    bricks_ = bricks_[: max(2, int(np.ceil(poses / steps)))]

    def parts(pose: int) -> list[Part]:
        moment = len(bricks_) * steps - pose if reverse else pose + 1
        shown = []
        for index, (colour, place, width, depth) in enumerate(bricks_):
            age = moment - index * steps
            if age > 0:
                covered = index + 1 < len(bricks_) and moment - (index + 1) * steps >= steps
                under = covered and bricks_[index + 1][1][2] > place[2] and width * depth <= 8
                shown.append(brick(colour, dropped(place, age, steps), width, depth, covered=under and width == depth))
        return shown

    return parts


def tower(rng: np.random.Generator, poses: int, place: Set) -> Scene:
    """Square bricks stacked one on another."""
    colours = pick(rng, int(rng.integers(2, 4)), place)
    width = int(rng.integers(2, 5))
    count = (poses + 2) // 3
    plan = [(colours[i % len(colours)], (0.0, 0.0, i * BRICK), width, width) for i in range(count)]
    high = count * BRICK
    return Scene(
        f"A tower of {' and '.join(colours)} bricks is stacked brick by brick on the {place.name} baseplate.",
        building(plan, poses, 3),
        (0, 0, high * 0.45),
        max(10, high * 1.25),
    )


def wall(rng: np.random.Generator, poses: int, place: Set) -> Scene:
    """Rows of bricks, each row shifted by half a brick."""
    colours = pick(rng, 2, place)
    plan: list[tuple[str, Place, int, int]] = []
    row = 0
    while len(plan) * 2 < poses:
        shift = 2 if row % 2 else 0
        for column in range(3):
            plan.append((colours[row % 2], (column * 4.0 - 5 + shift, 0.0, row * BRICK), 4, 2))
        row += 1
    return Scene(
        f"A wall of {colours[0]} and {colours[1]} bricks grows row by row.",
        building(plan, poses, 2),
        (0, 0, row * BRICK * 0.5),
        15,
    )


def house(rng: np.random.Generator, poses: int, place: Set) -> Scene:
    """Four walls with a door, and a roof of plates."""
    walls, roof, door = pick(rng, 3, place)
    plan: list[tuple[str, Place, int, int]] = [("grey", (0.0, 0.0, 0.0), 8, 6)]
    for level in range(3):
        z = BRICK * (level + 1)
        plan += [(walls, (-3, 0, z), 2, 6), (walls, (0, 2, z), 4, 2), (walls, (3, 0, z), 2, 6)]
        plan += [(walls if level == 2 else door, (0, -2, z), 4, 2)]
    top = BRICK * 4
    plan += [(roof, (0, 0, top), 8, 6), (roof, (0, 0, top + BRICK), 6, 4), (roof, (0, 0, top + 2 * BRICK), 2, 2)]
    steps = max(1.0, poses / len(plan))
    return Scene(
        f"A house with {walls} walls, a {door} door and a {roof} roof is built.",
        building(plan, poses, steps),
        (0, 0, 3.6),
        15,
    )


def unbuilding(rng: np.random.Generator, poses: int, place: Set) -> Scene:
    """A pyramid that is taken apart from the top."""
    colours = pick(rng, 2, place)
    plan = []
    for level in range(4):
        side = 4 - level
        for index in range(side * side):
            x, y = index % side, index // side
            at = ((x - (side - 1) / 2) * 2, ((side - 1) / 2 - y) * 2, PLATE + level * BRICK)
            plan.append((colours[level % 2], at, 2, 2))
    plan = plan[-max(2, poses - 1) :] if poses < len(plan) else plan
    base = [brick(colours[1], (0, 0, 0), 8, 8, PLATE)]
    taken = building(plan, poses, max(1.0, (poses - 1) / len(plan)), reverse=True)
    return Scene(
        f"A pyramid of {colours[0]} and {colours[1]} bricks is taken apart brick by brick.",
        lambda pose: base + taken(pose),
        (0, 0, 2),
        13,
    )


def walk(rng: np.random.Generator, poses: int, place: Set) -> Scene:
    """A figure crosses the baseplate between trees."""
    shirt, trousers, hat = pick(rng, 3, place)
    way = float(rng.choice([-1.0, 1.0]))
    yaw = 0.0 if way > 0 else np.pi
    slip = hand(rng, poses)
    woods = bricks.tree((-6.5, 5, 0)) + bricks.tree((6, 5.5, 0), "lime")
    span = min(8.0, 0.3 * poses)

    def parts(pose: int) -> list[Part]:
        x = way * span * (pose / (poses - 1) - 0.5)
        look = yaw - way * 0.45 + slip[pose, 2]
        at = (x + slip[pose, 0], -1.5 + slip[pose, 1], 0.0)
        return woods + bricks.walking(pose * 0.8, at, look, shirt, trousers, hat)

    return Scene(
        f"A figure with a {shirt} shirt, {trousers} trousers and a {hat} hat walks across the {place.name} baseplate.",
        parts,
        (0, 0, 2.2),
        12,
    )


def meeting(rng: np.random.Generator, poses: int, place: Set) -> Scene:
    """Two figures walk towards each other and wave."""
    one, two, dark, other = pick(rng, 4, place)
    slip = hand(rng, poses)
    arrive = max(6, int(poses * 0.6))

    def parts(pose: int) -> list[Part]:
        gap = 1.9 + 2.4 * max(0.0, 1 - pose / arrive)
        wave = (0.0, 0.0) if pose < arrive else (2.5 + 0.4 * np.sin(pose * 1.3), 0.1)
        swing = 0.6 * np.sin(pose * 0.8) if pose < arrive else 0.0
        arms = (-0.7 * swing, 0.7 * swing) if pose < arrive else wave
        left = bricks.figure((-gap + slip[pose, 0], 0, 0), -0.5, one, dark, dark, swing, arms)
        right = bricks.figure((gap + slip[pose, 1], 0, 0), np.pi + 0.5, two, other, other, -swing, arms[::-1])
        return left + right

    return Scene(f"A {one} and a {two} figure walk towards each other and wave.", parts, (0, 0, 2.2), 12)


def dance(rng: np.random.Generator, poses: int, place: Set) -> Scene:
    """A figure jumps and turns on a round stage of bricks."""
    shirt, trousers, stage, hat = pick(rng, 4, place)
    floor = [brick(stage, (0, 0, 0), 6, 6, PLATE), brick("white", (0, 0, PLATE), 4, 4, PLATE, covered=True)]
    spin = float(rng.choice([-1.0, 1.0])) * rng.uniform(0.12, 0.22)
    start = rng.uniform(-2.5, -0.8)

    def parts(pose: int) -> list[Part]:
        beat = pose * 0.7
        jump = 2 * PLATE + 0.7 * max(0.0, np.sin(beat))
        arms = (1.6 + 1.0 * np.sin(beat), 1.6 - 1.0 * np.sin(beat))
        at = (0.25 * np.sin(beat / 2), 0.0, jump)
        return floor + bricks.figure(at, start + spin * pose, shirt, trousers, hat, 0.3 * np.sin(beat), arms)

    return Scene(f"A figure in {shirt} and {trousers} dances and turns on a {stage} stage.", parts, (0, 0, 2.8), 10.5)


def drive(rng: np.random.Generator, poses: int, place: Set) -> Scene:
    """A vehicle crosses the baseplate."""
    kind = str(rng.choice(["car", "truck", "bus"]))
    body, trim, sign = pick(rng, 3, place)
    way = float(rng.choice([-1.0, 1.0]))
    lean = rng.uniform(-0.35, 0.35)
    yaw = (0.0 if way > 0 else np.pi) + lean
    slip = hand(rng, poses, 0.025)
    post = [brick("white", (-7, 5, 0), 1, 1, 3.2, covered=True), brick(sign, (-7, 5, 3.2), 3, 1, 2.4)]
    post += bricks.tree((7, 5.5, 0), "green", 2)
    span = min(7.0, 0.26 * poses)

    def parts(pose: int) -> list[Part]:
        along = span * (pose / (poses - 1) - 0.5)
        at = (along * np.cos(yaw) + slip[pose, 0], along * np.sin(yaw) - 1 + slip[pose, 1], 0.0)
        return post + bricks.vehicle(at, yaw + slip[pose, 2], kind, body, trim, way * along / 0.8)

    return Scene(f"A {body} and {trim} {kind} drives across the {place.name} baseplate.", parts, (0, 0, 1.8), 13)


def swell(rng: np.random.Generator, poses: int, place: Set) -> Scene:
    """A field of bricks that rise and fall like the sea."""
    colours = pick(rng, 3, place)
    speed, slant = rng.uniform(0.35, 0.55), rng.uniform(0.4, 0.8)

    def parts(pose: int) -> list[Part]:
        field = []
        for y in range(4):
            for x in range(5):
                height = 1.1 + np.sin(pose * speed - x * slant - y * 0.5)
                field.append(brick(colours[(x + y) % 3], ((x - 2) * 2.0, (1.5 - y) * 2.0, height - 1.2), 2, 2, 2.4))
        return field

    return Scene(f"A field of {', '.join(colours)} bricks rises and falls in waves.", parts, (0, 0, 1.2), 12.5)


def crawl(rng: np.random.Generator, poses: int, place: Set) -> Scene:
    """A snake of bricks crawls along a curve."""
    colours = pick(rng, 2, place)
    size, speed = rng.uniform(3.0, 3.8), rng.uniform(0.1, 0.15)
    turn = float(rng.choice([-1.0, 1.0]))

    def parts(pose: int) -> list[Part]:
        body = []
        for index in range(7):
            angle = turn * (pose * speed - index * 0.52) - 0.8
            lift = 0.35 * max(0.0, np.sin(pose * 0.9 - index * 1.2))
            at = (size * np.cos(angle), 0.8 * size * np.sin(angle), lift)
            body.append(brick(colours[index % 2], at, 2, 2, BRICK, angle))
        angle = turn * pose * speed - 0.8
        look = angle + turn * np.pi / 2
        head = (size * np.cos(angle), 0.8 * size * np.sin(angle), BRICK + 0.35 * max(0.0, np.sin(pose * 0.9)))
        eyes = [
            Part(bricks.prism(8, 0.28, 0.28, 0.5), bricks.turned(head, look, (0.4, s * 0.5, 0)), (250, 250, 250))
            for s in (-1, 1)
        ]
        return body + eyes

    return Scene(f"A snake of {colours[0]} and {colours[1]} bricks crawls in a circle.", parts, (0, 0, 1), 12)


def sort(rng: np.random.Generator, poses: int, place: Set) -> Scene:
    """Three bricks change places like cups in a shell game."""
    colours = pick(rng, 3, place)
    spots = [-3.5, 0.0, 3.5]
    swaps = [tuple(rng.choice(3, 2, replace=False)) for _ in range(poses // 7 + 1)]

    def parts(pose: int) -> list[Part]:
        order = [0, 1, 2]
        turn, step = divmod(pose, 7)
        for a, b in swaps[:turn]:
            order[a], order[b] = order[b], order[a]
        places = [(spots[i], 0.0) for i in range(3)]
        a, b = swaps[turn]
        angle = np.pi * (step + 1) / 7
        middle, half = (spots[a] + spots[b]) / 2, (spots[a] - spots[b]) / 2
        places[a] = (middle + half * np.cos(angle), half * np.sin(angle) * 0.7)
        places[b] = (middle - half * np.cos(angle), -half * np.sin(angle) * 0.7)
        return [brick(colours[order[i]], (*places[i], 0.0), 3, 3, 2 * BRICK) for i in range(3)]

    return Scene(
        f"A {colours[0]}, a {colours[1]} and a {colours[2]} brick slide and change places.", parts, (0, 0, 1.2), 12
    )


def flight(rng: np.random.Generator, poses: int, place: Set) -> Scene:
    """A plane flies over the baseplate and bobs."""
    body, wing, tail = pick(rng, 3, place)
    way = float(rng.choice([-1.0, 1.0]))
    yaw = (0.0 if way > 0 else np.pi) - 0.35 * way
    span = min(7.0, 0.24 * poses)
    hills = [brick("lime", (-5, 5.5, 0), 6, 4), brick("green", (-5, 5.5, BRICK), 4, 2), brick("green", (6, 5, 0), 6, 4)]

    def parts(pose: int) -> list[Part]:
        x = way * span * (pose / (poses - 1) - 0.5)
        at = (x, -0.5, 3.2 + 0.5 * np.sin(pose * 0.45))
        spin = pose * 0.9

        def piece(colour: str, offset: Place, width: int, depth: int, height: float) -> Part:
            return brick(colour, bricks.turned(at, yaw, offset), width, depth, height, yaw)

        plane = [piece(body, (0, 0, 0), 7, 2, BRICK), piece(wing, (0.5, 0, BRICK), 2, 9, PLATE)]
        plane += [piece(tail, (-3, 0, BRICK), 1, 2, BRICK), piece(tail, (-3, 0, 2 * BRICK), 1, 4, PLATE)]
        nose = bricks.turned(at, yaw, (3.6, 0, 0.6))
        plane.append(Part(bricks.box(0.15, 2.6, 0.3), nose, bricks.COLOURS["grey"], yaw, 0.0, spin))
        return hills + plane

    return Scene(f"A {body} plane with {wing} wings flies over the {place.name} baseplate.", parts, (0, 0, 3), 13)


def growth(rng: np.random.Generator, poses: int, place: Set) -> Scene:
    """A tree of plates grows and a flower turns beside it."""
    leaf, petal, heart = pick(rng, 3, place)

    def parts(pose: int) -> list[Part]:
        grown = (pose + 1) / poses
        height = 1.0 + 4.5 * grown
        plant = [Part(bricks.prism(10, 0.55, 0.45, height), (0, 0, 0), bricks.COLOURS["brown"])]
        for level in range(3):
            width = max(1, round((6 - 1.6 * level) * min(1.0, grown * 1.6)))
            plant.append(brick(leaf, (0, 0, height + level * 0.9), width, width, 0.9, 0.06 * pose))
        for index in range(5):
            angle = index * 2 * np.pi / 5 + pose * 0.12
            plant.append(brick(petal, (4.2 + 1.4 * np.cos(angle), -2 + 1.4 * np.sin(angle), 0.0), 1, 1, PLATE, angle))
        return [*plant, brick(heart, (4.2, -2, 0), 1, 1, 0.8)]

    return Scene(f"A tree with {leaf} leaves grows beside a turning {petal} flower.", parts, (1, 0, 3.4), 13)


SCENES: dict[str, Callable[[np.random.Generator, int, Set], Scene]] = {
    "tower": tower,
    "walk": walk,
    "drive": drive,
    "wall": wall,
    "dance": dance,
    "swell": swell,
    "house": house,
    "meeting": meeting,
    "crawl": crawl,
    "flight": flight,
    "sort": sort,
    "growth": growth,
    "unbuilding": unbuilding,
}

MOVES = ("static", "static", "pan", "dolly", "orbit", "static")


def camera_path(scene: Scene, rng: np.random.Generator, poses: int, move: str, shake: float) -> list[Camera]:
    """One camera per pose: where it starts, how it moves, and how much it trembles (studs)."""
    azimuth, elevation = rng.uniform(-0.45, 0.45), rng.uniform(0.28, 0.5)
    distance = scene.wide * 1.65
    way = float(rng.choice([-1.0, 1.0]))
    cameras = []
    for pose in range(poses):
        share = pose / max(1, poses - 1) - 0.5
        jitter = rng.normal(0, shake, 3) if shake else np.zeros(3)
        x = scene.middle[0] + jitter[0] + (way * share * scene.wide * 0.3 if move == "pan" else 0.0)
        cameras.append(
            Camera(
                (x, scene.middle[1] + jitter[1], scene.middle[2] + jitter[2]),
                azimuth + (way * share * 0.5 if move == "orbit" else 0.0),
                elevation,
                distance * (1 - way * share * 0.3 if move == "dolly" else 1.0),
            )
        )
    return cameras
