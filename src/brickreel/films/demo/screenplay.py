"""Which films there are, shot by shot. Pure data from a seed: nothing is drawn here."""

from dataclasses import dataclass, field

import numpy as np

from brickreel.films.demo.scenes import MOVES, SCENES, SETS

FPS = 24
CADENCES: dict[str, tuple[int, ...]] = {"ones": (1,), "twos": (2,), "threes": (3,), "mixed": (2, 2, 3, 1, 2, 4)}
DISSOLVE_FRAMES = 10


@dataclass(frozen=True)
class Shot:
    """One shot: a scene on a set, with its own seed, cadence and camera."""

    scene: str
    place: int
    seed: int
    poses: int
    cadence: str
    move: str = "static"
    shake: float = 0.0
    flicker: float = 0.0
    """Relative change of the light from pose to pose."""
    boil: float = 0.0
    """Relative change of the light between the frames of one pose, as a re-filmed monitor shows."""
    enter: str = "cut"
    """What leads into the shot: `cut` or `dissolve`."""


@dataclass(frozen=True)
class Title:
    """A title card, held still."""

    text: str
    place: int
    frames: int = 40


@dataclass(frozen=True)
class Film:
    """A film: its shots and titles in order, and how it is written."""

    name: str
    title: str
    parts: tuple[Shot | Title, ...]
    letterbox: float = 0.0
    """Share of the height that black bars take."""
    grain: float = 0.0
    """Camera noise in grey levels, new in every frame."""
    variable_rate: bool = False
    """Held frames are left out of the second half of each shot, which time stamps make up for."""
    crf: int = 20


@dataclass
class _Casting:
    """Hands out scenes and sets so that every kind appears before one comes back."""

    rng: np.random.Generator
    scenes: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def scene(self) -> str:
        if not self.scenes:
            self.scenes = [str(name) for name in self.rng.permutation(list(SCENES))]
        return self.scenes.pop()

    def place(self) -> int:
        if not self.places:
            self.places = [int(index) for index in self.rng.permutation(len(SETS))]
        return self.places.pop()


def screenplay(seed: int) -> list[Film]:
    """The demo's good films: ten, each with its own trouble for the stages that read them."""
    rng = np.random.default_rng([seed, 7])
    cast = _Casting(rng)

    def shots(count: int, cadence: str, **options: object) -> list[Shot]:
        made = []
        for index in range(count):
            kind = cadence if cadence in CADENCES else ("twos", "threes", "ones", "mixed")[index % 4]
            poses = int(rng.integers(*{"ones": (32, 52), "threes": (18, 27)}.get(kind, (20, 33))))
            move = str(rng.choice(MOVES))
            made.append(Shot(cast.scene(), cast.place(), int(rng.integers(2**31)), poses, kind, move, **options))  # type: ignore[arg-type]
        return made

    def dissolving(made: list[Shot]) -> list[Shot]:
        return [Shot(**{**vars(shot), "enter": "dissolve" if i % 2 else "cut"}) for i, shot in enumerate(made)]

    town = shots(8, "twos")
    night = shots(8, "threes")
    films = [
        Film("01-brick-town.mp4", "Brick Town", (Title("BRICK TOWN", 0), *town)),
        Film("02-slow-builders.mp4", "Slow Builders", tuple(night)),
        Film("03-smooth-riders.mp4", "Smooth Riders", (*shots(7, "ones"), Title("THE END", 2))),
        Film("04-mixed-parade.mp4", "Mixed Parade", tuple(dissolving(shots(8, "mixed")))),
        Film("05-wide-harbour.mp4", "Wide Harbour", (Title("WIDE HARBOUR", 5, 36), *shots(8, "twos")), letterbox=0.24),
        Film("06-shaky-hands.mp4", "Shaky Hands", tuple(shots(8, "twos", shake=0.07, flicker=0.05)), grain=2.0),
        Film(
            "07-best-of.mp4", "Best Of", (Title("BEST OF", 6, 30), *shots(3, "any"), town[2], *shots(3, "any")), crf=27
        ),
        Film("08-uneven-clock.mp4", "Uneven Clock", tuple(shots(8, "twos")), variable_rate=True),
        Film('09 Zoë\'s "big" day – été.mp4', "Zoë's “big” day", tuple(dissolving(shots(8, "threes", flicker=0.03)))),
        Film("10-flickering-lamp.mp4", "Flickering Lamp", tuple(shots(7, "any", flicker=0.04, boil=0.012)), grain=1.0),
    ]
    return films
