import numpy as np
import pytest

from brickreel.evaluation import holds
from brickreel.films import video


@pytest.mark.parametrize("pattern", [[1], [2], [3], [1, 2, 3]])
def test_holds_of_a_written_video_are_found(pattern, scene, tmp_path):
    wrong = 0
    for seed in range(4):
        asked = [pattern[index % len(pattern)] for index in range(16)]
        path = tmp_path / "a b.mp4"
        video.write(path, scene(seed), fps=24, holds=asked)
        found = holds.holds(video.read(path))
        assert sum(found) == sum(asked)
        wrong += found != asked
    assert wrong == 0


def test_holds_survive_noise_and_flicker_between_held_frames(scene, damage):
    asked = [2, 3] * 8
    frames = scene(0).repeat(asked, axis=0)
    rng = np.random.default_rng(0)
    noisy = np.clip(frames + rng.normal(0, 2, frames.shape), 0, 255).astype(np.uint8)
    assert holds.holds(noisy) == asked
    light = 1 + 0.03 * rng.uniform(-1, 1, len(frames))
    assert holds.holds(np.clip(frames * light[:, None, None, None], 0, 255).astype(np.uint8)) == asked


def test_a_still_is_one_hold(scene):
    assert holds.holds(scene(0)[:1].repeat(10, axis=0)) == [10]


def test_distance_grows_as_holds_are_dropped_from_the_asked_cadence():
    asked = [2] * 16
    kept = [holds.histogram_distance([1] * dropped + [2] * (16 - dropped) + [2], asked) for dropped in (0, 4, 8, 16)]
    assert kept[0] == 0
    assert kept == sorted(kept)
    assert holds.histogram_distance([1] * 17, asked) == 1
    assert holds.histogram_distance([3] * 17, [1]) == 2


def test_every_third_frame_of_twos_alternates_as_arithmetic_says(scene):
    frames = scene(1, 24).repeat(2, axis=0)[::3]
    shown = scene(1, 24)[[0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 21, 22]]
    assert np.array_equal(frames, shown)


def test_pose_indices_are_where_holds_begin():
    assert holds.pose_indices([2, 1, 3]) == [0, 2, 3]
