"""Signals of a whole film: the same in one piece and in chunks, and true to what is seen."""

import cv2
import numpy as np
import pytest

from brickreel.films import isolated, measure, signals
from films import synth


def test_chunks_change_nothing(tmp_path, monkeypatch):
    film = synth.Film()
    for seed in range(4):
        film.add(synth.scene(seed, 25), synth.holds("twos", 25))
    path = film.write(tmp_path / "film.mp4")
    whole = signals.read(path, network="off")
    monkeypatch.setattr(signals, "CHUNK", 90)
    parts = signals.read(path, network="off")
    assert parts.transition == whole.transition
    assert np.array_equal(parts.new_pose, whole.new_pose)


def test_values_say_what_is_seen(tmp_path):
    film = synth.Film().add([np.zeros((180, 320, 3), np.uint8)] * 12, [1] * 12)
    film.add(synth.title("BRICK TOWN", 18), [1] * 18).add(synth.scene(2, 30), [1] * 30)
    found = signals.read(film.write(tmp_path / "film.mp4"), network="off")
    luma, text = np.array(found.luma), np.array(found.text_score)
    assert luma[:12].max() < 0.02 < luma[30:].min()
    assert text[18:30].min() > 0.02
    assert text[36:].max() < 0.02
    assert found.thumbnail[0]
    assert found.thumbnail[1] is None
    assert found.crop[40] == (0, 0, 320, 180)


@pytest.mark.parametrize("length", [25, 26, 36])
def test_a_shot_after_a_title_has_none_of_its_text(tmp_path, length):
    film = synth.Film().add(synth.title("BRICK TOWN", length), [1] * length).add(synth.scene(1, 16), [1] * 16)
    text = np.array(signals.read(film.write(tmp_path / "film.mp4"), network="off").text_score)
    assert text[:length].min() > 0.02 > text[length:].max()


def test_the_bars_of_a_shot_are_its_own_from_its_first_frame(tmp_path):
    film = synth.Film()
    for seed, bar in ((1, 20), (2, 36)):
        pictures = synth.scene(seed, 17)
        for picture in pictures:
            picture[:bar], picture[-bar:] = 0, 0
        film.add(pictures, [1] * 17)
    crop = signals.read(film.write(tmp_path / "film.mp4"), network="off").crop
    assert set(crop[:17]) == {(0, 20, 320, 160)}
    assert set(crop[17:]) == {(0, 36, 320, 144)}


@pytest.mark.parametrize(("scale", "thick"), [(0.8, 1), (1.0, 2), (1.8, 4)])
def test_small_and_large_letters_are_text_and_a_scene_is_not(scale, thick):
    picture = np.full((180, 320), 60, np.uint8)
    cv2.putText(picture, "BEST OF", (20, 110), cv2.FONT_HERSHEY_DUPLEX, scale, 240, thick, cv2.LINE_AA)
    assert measure.text_share(picture) > 0.02
    assert max(measure.text_share(synth.scene(seed, 1)[0][..., 1].copy()) for seed in range(6)) < 0.02


def test_black_bars_are_measured_to_the_pixel():
    picture = np.full((360, 640), 16, np.uint8)
    picture[44:316, :] = 120
    assert measure.black_bars(picture) == (0, 44, 640, 316)


def test_a_night_scene_is_no_letterbox():
    picture = np.full((360, 640), 16, np.uint8)
    picture[300:, :] = 120
    assert measure.black_bars(picture) == (0, 0, 640, 360)
    assert measure.black_bars(np.full((360, 640), 16, np.uint8)) == (0, 0, 640, 360)


def test_blur_rises_with_blurring():
    sharp = cv2.cvtColor(synth.scene(1, 1)[0], cv2.COLOR_RGB2GRAY)
    values = [measure.sharpness_lost(cv2.GaussianBlur(sharp, (0, 0), sigma)) for sigma in (0.5, 1.5, 4)]
    assert values == sorted(values)
    assert values[0] < 0.6 < 0.85 < values[2]


def test_light_alone_is_no_change():
    picture = synth.scene(1, 1)[0][..., 0].astype(np.float32)
    score, motion, flicker = measure.compare(picture, picture * 1.05)
    assert score < 1
    assert motion < 0.002
    assert abs(flicker - 0.05) < 0.01


def test_the_hash_outlives_compression_and_not_another_scene():
    first, second = (scene[..., 0].copy() for scene in (synth.scene(1, 1)[0], synth.scene(2, 1)[0]))
    noisy = synth.noise([first], 5)[0]
    same = (measure.perceptual_hash(first) ^ measure.perceptual_hash(noisy)).bit_count()
    other = (measure.perceptual_hash(first) ^ measure.perceptual_hash(second)).bit_count()
    assert same <= 6 < 16 < other


def test_a_long_film_has_its_thumbnails_further_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "MOST_THUMBNAILS", 4)
    film = synth.Film().add(synth.scene(3, 120), [1] * 120)
    found = signals.read(film.write(tmp_path / "film.mp4"), network="off")
    assert [frame for frame, picture in enumerate(found.thumbnail) if picture] == [0, 48, 96]
    assert len(found.thumbnail) == 120


def test_progress_is_told_by_time_and_not_by_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "PULSE_S", 0)
    told = []
    signals.read(
        synth.Film().add(synth.scene(1, 8), [1] * 8).write(tmp_path / "film.mp4"), network="off", watch=told.append
    )
    assert told == list(range(8))
