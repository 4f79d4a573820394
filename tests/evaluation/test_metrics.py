import numpy as np
import pytest

from brickreel.evaluation import metrics

SEEDS = range(6)


def mean(measure, videos):
    return np.mean([measure(video) for video in videos])


def test_noise_ranks_noisy_above_clean_above_blurred(scene, damage):
    clean = [scene(seed) for seed in SEEDS]
    noisy, blurred = ([damage[kind](video) for video in clean] for kind in ("noise", "blur"))
    assert mean(metrics.noise, noisy) > 3 * mean(metrics.noise, clean)
    assert mean(metrics.noise, blurred) < mean(metrics.noise, clean)


def test_noise_estimates_the_standard_deviation_that_was_added():
    rng = np.random.default_rng(0)
    flat = np.clip(128 + rng.normal(0, 8, (4, 64, 64, 1)), 0, 255).repeat(3, axis=-1).astype(np.uint8)
    assert metrics.noise(flat) == pytest.approx(8, rel=0.05)


def test_sharpness_falls_with_blur(scene, damage):
    clean = [scene(seed) for seed in SEEDS]
    assert mean(metrics.sharpness, [damage["blur"](video) for video in clean]) < 0.7 * mean(metrics.sharpness, clean)


def test_flicker_between_poses_rises_with_unsteady_light_and_ignores_a_fade(scene, damage):
    clean = [scene(seed) for seed in SEEDS]
    fade = [(video * np.linspace(1, 0.5, len(video))[:, None, None, None]).astype(np.uint8) for video in clean]
    steady = mean(metrics.flicker_between, clean)
    assert mean(metrics.flicker_between, [damage["flicker"](video) for video in clean]) > 5 * steady
    assert mean(metrics.flicker_between, fade) < 2 * steady + 0.3


def test_flicker_within_sees_boil_in_held_frames_and_not_the_motion_between_poses(scene, damage):
    video = scene(1)
    held = video.repeat(2, axis=0)
    holds = [2] * len(video)
    assert metrics.flicker_within(held, holds) == 0
    assert metrics.flicker_within(damage["flicker"](held), holds) > 1
    assert metrics.flicker_within(damage["noise"](held), holds) > 1


def test_flicker_within_needs_a_held_pose(scene):
    with pytest.raises(ValueError, match="no pose is held"):
        metrics.flicker_within(scene(0), [1] * 16)


def test_smoothness_falls_when_poses_are_shuffled_or_noisy(scene, damage):
    clean = [scene(seed) for seed in SEEDS]
    smooth = mean(metrics.smoothness, clean)
    assert smooth > 0.8
    assert mean(metrics.smoothness, [damage["shuffle"](video) for video in clean]) < smooth - 0.05
    assert mean(metrics.smoothness, [damage["noise"](video) for video in clean]) < smooth


def test_smoothness_in_pose_time_does_not_see_holds_while_frame_time_punishes_them(scene):
    video = scene(3)
    held = video.repeat(2, axis=0)
    assert metrics.smoothness(held[::2]) == metrics.smoothness(video)
    assert metrics.smoothness(held) < metrics.smoothness(video)


def test_motion_is_zero_for_a_still_and_grows_with_speed(scene):
    slow, fast = scene(2), scene(2, 31)[::2]
    assert metrics.motion(slow[:1].repeat(8, axis=0)) < 0.05
    assert metrics.motion(scene(2, 32)[::3]) > metrics.motion(slow) > 0.1
    assert fast.shape[0] == 16


def test_a_video_without_picture_is_refused():
    with pytest.raises(ValueError, match="no picture"):
        metrics.check(np.zeros((4, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("measure", [metrics.smoothness, metrics.flicker_between])
def test_too_few_poses_are_a_sentence(measure, scene):
    with pytest.raises(ValueError, match="2 poses, at least 3"):
        measure(scene(0, 2))
