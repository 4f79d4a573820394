"""Holds are found whatever was done to the film afterwards, and nothing is called held that moves."""

import cv2
import numpy as np
import pytest

from brickreel.films import cadence, signals
from films import synth

TROUBLES = {
    "clean": lambda frames: frames,
    "flicker": lambda frames: synth.flicker(frames, 0.02, 1),
    "noise": lambda frames: synth.noise(frames, 3.0, 1),
}


def found(tmp_path, frames, fps=24, crf=18):
    film = synth.Film(frames=list(frames))
    return signals.read(film.write(tmp_path / "film.mp4", fps, crf), network="off")


def f1(new, poses):
    true = np.zeros(len(new), bool)
    true[poses] = True
    return 2 * (new & true).sum() / (new.sum() + true.sum())


@pytest.mark.parametrize("crf", [18, 28, 35])
@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("shot_on", ["twos", "mixed"])
def test_new_poses_are_found_after_noise_flicker_and_compression(tmp_path, shot_on, trouble, crf):
    film = synth.Film().add(synth.scene(3, 30), synth.holds(shot_on, 30, 5))
    result = found(tmp_path, TROUBLES[trouble](film.frames), crf=crf)
    assert f1(result.new_pose, film.poses) >= 0.95
    assert cadence.cadence(result.new_pose, 24).label == shot_on


@pytest.mark.parametrize(("fps", "every"), [(25, 24), (30, 4)])
def test_repeated_frames_of_another_rate_are_holds(tmp_path, fps, every):
    film = synth.Film().add(synth.scene(4, 40), synth.holds("ones", 40))
    source = [frame for place, frame in enumerate(film.frames) for _ in range(2 if place % every == every - 1 else 1)]
    poses = np.flatnonzero([place == 0 or source[place] is not source[place - 1] for place in range(len(source))])
    result = found(tmp_path, source, fps)
    assert f1(result.new_pose, poses) >= 0.97


def test_a_small_moving_hand_is_a_new_pose(tmp_path):
    film = synth.Film().add(synth.scene(5, 24, step=3, size=0.5), synth.holds("twos", 24))
    assert f1(found(tmp_path, film.frames).new_pose, film.poses) >= 0.95


def test_slow_motion_is_not_held(tmp_path):
    ground = synth.scene(7, 1)[0]
    frames = [np.roll(cv2.GaussianBlur(ground, (0, 0), 2), place, axis=1) for place in range(60)]
    frames = synth.noise(frames, 2.0)
    assert found(tmp_path, frames).new_pose.mean() >= 0.99


def test_a_title_is_one_pose(tmp_path):
    assert found(tmp_path, synth.title("THE END", 30)).new_pose.sum() == 1


def test_a_coarsely_compressed_shot_is_held_where_its_heaps_are_near_but_apart():
    rng = np.random.default_rng(1)
    scores = np.where(np.arange(46) % 2 == 0, rng.uniform(21, 40, 46), rng.uniform(5.6, 9, 46)).astype(np.float32)
    new = cadence.new_poses(scores, np.zeros(46, np.float32))
    assert np.flatnonzero(new).tolist() == list(range(0, 46, 2))


def test_poses_in_which_a_puppet_hardly_moves_are_found_on_the_beat_and_pauses_are_not():
    rng = np.random.default_rng(1)
    scores = np.where(np.arange(60) % 2 == 0, rng.uniform(30, 50, 60), rng.uniform(4, 8, 60)).astype(np.float32)
    scores[[24, 48]] = 12.0
    # The puppet rests here: nothing but noise.
    scores[35:38] = 6.0
    new = cadence.new_poses(scores, np.zeros(60, np.float32))
    assert np.flatnonzero(new).tolist() == [frame for frame in range(0, 60, 2) if frame != 36]


@pytest.mark.parametrize(("fps", "every"), [(25, 24), (30, 4)])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_converted_shot_keeps_its_label_wherever_the_conversion_begins(fps, every, length):
    for begin in range(every):
        for skipped in range(length):
            source = np.repeat(np.arange(20), length)[skipped:]
            again = np.where((np.arange(len(source)) + begin) % every == every - 1, 2, 1)
            shown = np.repeat(source, again)
            new = np.diff(shown, prepend=-1) != 0
            assert cadence.cadence(new, fps).label == {1: "ones", 2: "twos", 3: "threes"}[length]


@pytest.mark.parametrize("fps", [24, 25, 30])
def test_an_animators_own_rhythm_is_mixed(fps):
    source = np.repeat(np.arange(24), [2, 2, 3, 1, 2, 4] * 4)
    every = {24: 10**6, 25: 24, 30: 4}[fps]
    shown = np.repeat(source, np.where(np.arange(len(source)) % every == every - 1, 2, 1))
    assert cadence.cadence(np.diff(shown, prepend=-1) != 0, fps).label == "mixed"


def test_holds_that_hardly_stand_out_are_found_where_they_keep_the_beat():
    rng = np.random.default_rng(3)
    scores = np.where(np.arange(60) % 2 == 0, rng.uniform(90, 130, 60), rng.uniform(3, 6, 60)).astype(np.float32)
    # Towards the end less moves, and is compressed more coarsely.
    scores[40:] = np.where(np.arange(20) % 2 == 0, rng.uniform(15, 20, 20), rng.uniform(7, 9, 20))
    scores[[46, 48, 54]] = 11.5
    new = cadence.new_poses(scores, np.zeros(60, np.float32))
    assert np.flatnonzero(new).tolist() == list(range(0, 60, 2))


def test_what_an_encoder_mends_right_after_a_pose_is_no_pose():
    rng = np.random.default_rng(2)
    new = np.zeros(56, bool)
    new[np.cumsum([0, 2, 2, 3, 1, 2, 4, 2, 2, 3, 1, 2, 4, 2, 2, 3, 1, 2, 4, 2, 2, 3, 1, 2])] = True
    scores = np.where(new, rng.uniform(70, 105, 56), rng.uniform(1.7, 3.4, 56)).astype(np.float32)
    mended = ~new & np.concatenate(([False], new[:-1]))
    scores[mended] = rng.uniform(8, 13, mended.sum())
    assert cadence.new_poses(scores, np.zeros(56, np.float32)).tolist() == new.tolist()


def test_a_picture_that_an_encoder_mends_after_a_cut_is_one_pose():
    scores = np.full(40, 0.5, np.float32)
    scores[:3] = 150.0, 4.0, 1.6
    assert cadence.new_poses(scores, np.zeros(40, np.float32)).sum() == 1


def test_timing_of_a_shot():
    new = np.zeros(24, bool)
    new[[0, 2, 4, 7, 9, 11, 13, 15, 17, 19, 21, 23]] = True
    timing = cadence.cadence(new, 24)
    assert timing.histogram == {1: 1, 2: 10, 3: 1}
    assert (timing.label, timing.pose_rate) == ("twos", 12.0)


def test_where_the_rate_varies_time_counts_and_not_frames():
    # On twos, written without the repeated frames.
    times = np.arange(13) / 12
    timing = cadence.cadence(np.ones(12, bool), 24, times)
    assert (timing.label, timing.pose_rate) == ("twos", 12.0)


def test_a_few_copied_frames_do_not_make_the_mended_ones_new_poses():
    """Scores of a shot on threes at CRF 35: the encoder copies some frames and mends others."""
    poses = [49, 41, 34, 64, 64, 25, 25, 26, 23, 19, 22, 47, 48, 49, 54, 25, 27, 37, 50, 18, 24, 35]
    held = [0, 0, 5.2, 1.1, 2.3, 4.6, 5.1, 1.2, 7.2, 2.8, 3.3, 2.5, 1.1, 0.6, 1.1, 6.7, 4.2, 4.9, 2.3, 0.2, 6.9, 0.7]
    again = [0, 0, 5.3, 1.1, 4.7, 4.9, 9.8, 1.3, 8, 3, 6, 2.7, 1.0, 6.0, 1.3, 9.8, 4.5, 5.4, 2.7, 0.2, 5.1, 0.6]
    scores = np.stack([poses, held, again], axis=1).ravel()
    new = cadence.new_poses(scores.astype(np.float32), np.zeros(len(scores), np.float32))
    assert np.flatnonzero(new).tolist() == list(range(0, len(scores), 3))


def test_a_noisy_still_whose_first_frames_an_encoder_mends_is_one_pose():
    scores = np.array([0.0, 1.4, 1.2, 1.1] + [0.6, 0.9, 0.5, 0.8, 0.7] * 6, np.float32)
    assert cadence.new_poses(scores, np.zeros(len(scores), np.float32)).sum() == 1


def test_small_movements_of_a_shot_on_ones_are_new_poses():
    """Scores of two figures that walk towards each other, and then only wave."""
    scores = [0, 72, 65, 53, 45, 45, 48, 47, 50, 69, 69, 44, 54, 45, 39, 44, 60, 67, 45, 68, 38, 17.8, 39, 8, 16.7, 42]
    scores += [17.1, 34.9, 10.4, 16.4, 38, 30.3]
    assert cadence.new_poses(np.array(scores, np.float32), np.zeros(len(scores), np.float32)).all()


def test_regular_holds_are_found_though_hard_compression_draws_the_heaps_together():
    rng = np.random.default_rng(3)
    scores = np.where(np.arange(56) % 2 == 0, rng.uniform(11.6, 29, 56), rng.uniform(4.6, 7.8, 56)).astype(np.float32)
    light = np.zeros(56, np.float32)
    assert np.flatnonzero(cadence.new_poses(scores, light)).tolist() == list(range(0, 56, 2))
    # The same scores in any order are motion that comes and goes.
    shuffled = rng.permutation(scores)
    assert cadence.new_poses(shuffled, light).all()
