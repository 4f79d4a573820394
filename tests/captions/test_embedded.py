import re

import cv2
import numpy as np
import pytest

from brickreel.captions import checks, embedded
from brickreel.config import Caption
from captions import scenes


def caption(tmp_path, xs, ys=None, **look):
    frames, holds = scenes.write_clip(tmp_path / "a.mp4", xs, ys, **look)
    return embedded.describe_clip(tmp_path / "a.mp4", frames, holds, False, 24.0, 12.0).caption


def line(start, end, count=24):
    return np.linspace(start, end, count)


@pytest.mark.parametrize(
    ("xs", "ys", "words"),
    [
        (line(0.2, 0.8), None, "quickly to the right"),
        (line(0.8, 0.2), None, "quickly to the left"),
        (line(0.4, 0.6, 60), None, "slowly to the right"),
        ([0.5] * 24, line(0.8, 0.3), " up."),
        ([0.5] * 24, line(0.3, 0.8), " down."),
        (line(0.3, 0.7), line(0.3, 0.8), "down and to the right"),
        (0.5 + 0.25 * np.sin(np.linspace(0, 9.4, 48)), None, "back and forth"),
        ([0.5] * 24, None, "stays still"),
    ],
)
def test_motion_is_told_with_its_direction_and_speed(tmp_path, xs, ys, words):
    assert words in caption(tmp_path, xs, ys)


@pytest.mark.parametrize("thing", ["red", "yellow", "blue", "purple"])
def test_colour_of_the_subject_is_named(tmp_path, thing):
    found = caption(tmp_path, line(0.3, 0.7), thing=thing, size=0.3)
    assert re.match(rf"An? \w+ {thing} subject", found), found


def test_backdrop_and_ground_are_named(tmp_path):
    found = caption(tmp_path, line(0.3, 0.7), backdrop="purple", ground="white")
    assert "The background is purple and the ground is white." in found


def test_place_and_size_follow_the_subject(tmp_path):
    assert "on the left" in caption(tmp_path, [0.2] * 24)
    assert "on the right" in caption(tmp_path, [0.8] * 24)
    assert caption(tmp_path, line(0.3, 0.7), size=0.1).startswith("A tiny")


def test_light_is_told(tmp_path):
    assert "The light is dark." in caption(tmp_path, line(0.3, 0.7), light=0.25)
    assert "The light is bright." in caption(tmp_path, line(0.3, 0.7), ground="white", backdrop="white")


def textured(count, step=0, zoom=1.0):
    """Pictures of a wall of blurred squares; the view passes `step` pixels to the right from picture to picture."""
    wall = np.random.default_rng(1).integers(90, 160, (36, 80, 1), np.uint8).repeat(3, 2)
    wall = cv2.GaussianBlur(cv2.resize(wall, (800, 360), interpolation=cv2.INTER_NEAREST), (0, 0), 2)
    pictures = []
    for k in range(count):
        size = zoom**k
        matrix = np.array([[size, 0, 160 - size * (300 + step * k)], [0, size, 90 - size * 180]])
        pictures.append(cv2.warpAffine(wall, matrix, (320, 180)))
    return np.stack(pictures)


@pytest.mark.parametrize(
    ("step", "zoom", "sentence"),
    [
        (6, 1.0, "The view moves to the right."),
        (-6, 1.0, "The view moves to the left."),
        (0, 1.03, "The view moves closer."),
        (0, 1 / 1.03, "The view moves away."),
        (0, 1.0, "The view is still."),
    ],
)
def test_camera_is_told_with_its_direction(step, zoom, sentence):
    stack = np.stack(
        [cv2.resize(picture, (112, 63), interpolation=cv2.INTER_AREA) for picture in textured(8, step, zoom)]
    )
    assert embedded.describe(stack, list(np.arange(8) / 8)).camera == sentence


def test_camera_that_jumps_about_has_no_direction():
    noise = np.random.default_rng(1).integers(0, 255, (18, 96, 3), np.uint8).repeat(10, 0).repeat(10, 1)
    stack = np.stack([noise[:, 100 * k : 100 * k + 320] for k in range(5)])
    assert embedded.describe(stack, [0.0, 0.25, 0.5, 0.75, 1.0]).camera == "The view moves."


def pictures_of(sizes, centres, **look):
    return np.stack([scenes.picture(0.5, y, size=size, **look) for size, y in zip(sizes, centres, strict=True)])


def test_what_stands_on_the_ground_grows_and_what_swells_comes_closer():
    times = list(np.arange(8) / 4)
    sizes = np.linspace(0.15, 0.4, 8)
    assert embedded.describe(pictures_of(sizes, 0.8 - sizes / 2), times).action == "grows"
    assert embedded.describe(pictures_of(sizes[::-1], 0.8 - sizes[::-1] / 2), times).action == "shrinks"
    assert embedded.describe(pictures_of(sizes, [0.6] * 8), times).action == "comes closer"
    assert embedded.describe(pictures_of(sizes[::-1], [0.6] * 8), times).action == "moves away"


def two(x_left, x_right):
    picture = scenes.picture(x_left, 0.6)
    picture[:, 160:] = scenes.picture(x_right, 0.6)[:, 160:]
    return picture


def test_two_subjects_come_together_and_move_apart():
    way = np.linspace(0.12, 0.4, 8)
    stack = np.stack([two(x, 1 - x) for x in way])
    found = embedded.describe(stack, list(np.arange(8) / 4))
    assert found.caption.startswith("Two small red subjects in the centre come together.")
    assert embedded.describe(stack[::-1].copy(), list(np.arange(8) / 4)).action == "move apart"


def test_round_path_is_a_circle():
    angles = np.linspace(0, 2 * np.pi, 8)
    stack = np.stack([scenes.picture(0.5 + 0.12 * np.cos(a), 0.55 + 0.2 * np.sin(a)) for a in angles])
    assert embedded.describe(stack, list(np.arange(8) / 2)).action == "moves steadily in a circle"


def test_light_that_flickers_moves_nothing():
    stack = np.stack([scenes.picture(0.5, light=light) for light in (1.0, 0.95, 1.04, 0.97, 1.02)])
    found = embedded.describe(stack, [0.0, 0.25, 0.5, 0.75, 1.0])
    assert (found.action, found.camera) == ("stays still", "The view is still.")


def test_still_has_no_motion(tmp_path):
    found = embedded.describe(scenes.picture(0.5)[None], [0.0])
    assert "red subject in the centre is shown" in found.caption
    assert "move" not in found.caption
    assert found.action == ""


def test_empty_set_is_told():
    found = embedded.describe(np.full((1, 90, 160, 3), 240, np.uint8), [0.0])
    assert found.caption.startswith("An empty set is shown. The background is white.")
    assert found.confidence == 0


def test_words_stay_in_the_published_vocabulary_and_pass_the_checks(tmp_path):
    words = set(embedded.vocabulary())
    generator = np.random.default_rng(0)
    for _ in range(60):
        stack = np.stack(
            [
                scenes.picture(
                    *generator.uniform(0.1, 0.9, 2),
                    size=generator.uniform(0.05, 0.6),
                    thing=generator.choice(list(scenes.COLOURS)),
                    light=generator.uniform(0.2, 1.1),
                    height=72,
                    width=128,
                )
                for _ in range(generator.choice([1, 5]))
            ]
        )
        text = embedded.describe(stack, list(np.arange(len(stack)) / 3)).caption
        assert set(text.replace(".", " .").split()) <= words
        assert checks.text_problem(text, Caption()) == ""


def test_same_pixels_give_the_same_words(tmp_path):
    assert caption(tmp_path, line(0.2, 0.6)) == caption(tmp_path, line(0.2, 0.6))


def test_unreadable_clip_is_one_sentence(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.mp4"):
        embedded.describe_clip(tmp_path / "a.mp4", 10, None, False, 24.0, 12.0)
