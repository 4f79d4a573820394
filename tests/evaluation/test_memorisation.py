import numpy as np
import pytest

from brickreel.evaluation import memorisation


@pytest.fixture(scope="module")
def clips(scene):
    return [memorisation.thumbnails(scene(seed, 32)) for seed in range(8)]


def test_a_copy_shifted_in_time_noisy_and_darker_is_found_and_called_a_copy(scene, clips, damage):
    copied = damage["noise"](scene(3, 32)[9:25]) * 0.8
    sample = memorisation.thumbnails(copied.astype(np.uint8))
    found = memorisation.nearest(sample, clips)
    assert (found.clip, found.offset) == (3, 9)
    assert memorisation.is_copy(found, clips, 16)


def test_a_new_scene_is_farther_than_a_copy_and_no_copy(scene, clips):
    copy = memorisation.nearest(clips[2][4:20], clips)
    fresh = [memorisation.thumbnails(scene(seed)) for seed in range(20, 28)]
    found = [memorisation.nearest(sample, clips) for sample in fresh]
    assert copy.distance == pytest.approx(0, abs=1e-2)
    assert min(near.distance for near in found) > 10 * max(copy.distance, 0.01)
    assert sum(memorisation.is_copy(near, clips, 16) for near in found) <= 4


def test_distance_ranks_copy_before_damaged_copy_before_new(scene, clips, damage):
    copy, blurred, new = (
        memorisation.nearest(memorisation.thumbnails(video), clips).distance
        for video in (scene(1), damage["blur"](scene(1)), scene(30))
    )
    assert copy < blurred < new


def test_clips_shorter_than_the_sample_are_compared_too(scene, clips):
    found = memorisation.nearest(memorisation.thumbnails(scene(4, 16)), [clips[4][:6]])
    assert (found.clip, found.offset) == (0, 0)
    assert found.distance == pytest.approx(0, abs=1e-2)


def test_no_training_clip_is_a_sentence(clips):
    with pytest.raises(ValueError, match="no training clip"):
        memorisation.nearest(clips[0], [])
