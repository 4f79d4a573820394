import numpy as np
import pytest

from brickreel.captions import palette
from brickreel.films.demo.bricks import COLOURS

# The basic colour terms of the bricks: lime is a green, teal lies between green and blue, tan is a pale yellow.
ALSO = {"lime": {"green"}, "teal": {"blue", "green"}, "tan": {"yellow", "white", "orange"}}


def patch(rgb):
    return np.full((4, 4, 3), rgb, np.uint8)


@pytest.mark.parametrize("name", COLOURS)
def test_every_brick_has_the_name_of_its_colour(name):
    found = palette.NAMES[palette.names_of(patch(COLOURS[name]))[0, 0]]
    assert found in ALSO.get(name, {name})


def test_stack_of_pictures_keeps_its_shape():
    assert palette.names_of(np.zeros((3, 5, 7, 3), np.uint8)).shape == (3, 5, 7)


def test_dominant_names_are_ordered_by_share():
    named = np.array([3] * 60 + [8] * 35 + [7] * 5)
    assert palette.dominant(named, 2, 0.2) == ["red", "blue"]
    assert palette.dominant(named, 2, 0.5) == ["red"]


@pytest.mark.parametrize(
    ("name", "rgb", "words"),
    [
        ("blue", (150, 200, 240), "light blue"),
        ("blue", (30, 40, 90), "dark blue"),
        ("blue", (40, 104, 214), "blue"),
        ("grey", (200, 200, 204), "light grey"),
        ("grey", (90, 90, 94), "dark grey"),
        ("white", (250, 250, 250), "white"),
        ("black", (10, 10, 10), "black"),
        ("orange", (250, 214, 178), "light orange"),
    ],
)
def test_shades_are_named(name, rgb, words):
    assert palette.shaded(name, np.array([rgb], np.uint8)) == words
