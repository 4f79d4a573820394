import random

import numpy as np
import pytest
import torch

from brickreel.evaluation import distance, features


@pytest.fixture(scope="module")
def real(scene):
    return features.transnetv2([scene(seed) for seed in range(12)])


def test_frechet_distance_ranks_every_damage_worse_than_other_clean_clips(scene, damage, real):
    reference, clean = np.concatenate(real[:6]), np.concatenate(real[6:])
    ceiling = distance.frechet(clean, reference)
    for kind, least in {"noise": 1.0, "blur": 1.05, "flicker": 3.0, "shuffle": 1.1}.items():
        damaged = np.concatenate(features.transnetv2([damage[kind](scene(seed)) for seed in range(6, 12)]))
        assert distance.frechet(damaged, reference) > least * ceiling, kind


def test_features_do_not_depend_on_the_batch(scene):
    videos = [scene(0), scene(1, 8), scene(2)]
    together = features.transnetv2(videos)
    for video, vector in zip(videos, together, strict=True):
        assert vector.shape == (len(video), 256)
        np.testing.assert_allclose(features.transnetv2([video])[0], vector, atol=1e-4)


def test_drift_grows_when_a_video_turns_into_another_one_or_into_noise(scene):
    steady = scene(0)
    turned = np.concatenate([scene(0)[:8], scene(5)[8:]])
    noise = np.random.default_rng(0).normal(0, 1, steady.shape) * np.linspace(0, 40, 16)[:, None, None, None]
    decayed = np.clip(steady + noise, 0, 255).astype(np.uint8)
    still = steady[:1].repeat(16, axis=0)
    drifts = [features.drift(vector) for vector in features.transnetv2([still, steady, decayed, turned])]
    assert drifts[0] == pytest.approx(0, abs=1e-5)
    assert drifts == sorted(drifts)


def test_consistency_is_one_for_a_still_and_falls_with_change(scene):
    turned = np.concatenate([scene(0)[:8], scene(5)[8:]])
    still, moving, broken = features.transnetv2([scene(0)[:1].repeat(16, axis=0), scene(0), turned])
    assert features.consistency(still) == pytest.approx(1)
    assert features.consistency(broken) < features.consistency(moving) < 1


def test_loading_the_network_leaves_random_states_and_switches_alone(scene):
    features._transnet.cache_clear()
    torch.manual_seed(5)
    random.seed(5)
    before = torch.random.get_rng_state(), random.getstate(), torch.are_deterministic_algorithms_enabled()
    features.transnetv2([scene(0, 4)])
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1:] == (random.getstate(), torch.are_deterministic_algorithms_enabled())


@pytest.mark.parametrize("kind", [features.ClipModel, features.PictureModel, features.VideoModel])
def test_missing_weights_are_a_sentence_that_names_the_folder(kind, tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere"):
        kind(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no weights"):
        kind(tmp_path)


@pytest.fixture(scope="module")
def small_networks(tmp_path_factory):
    """DINOv2 and VideoMAE of a few thousand untrained weights, as their published folders are laid out."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model, VideoMAEConfig, VideoMAEImageProcessor
    from transformers import VideoMAEModel as VideoMae

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("networks ü")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
    Dinov2Model(Dinov2Config(**sizes, patch_size=8)).save_pretrained(folder / "dinov2")
    edge = {"size": {"height": 32, "width": 32}, "crop_size": {"height": 32, "width": 32}}
    BitImageProcessor(**edge).save_pretrained(folder / "dinov2")
    VideoMae(VideoMAEConfig(**sizes, intermediate_size=64, patch_size=8, num_frames=4)).save_pretrained(
        folder / "videomae"
    )
    VideoMAEImageProcessor(**edge).save_pretrained(folder / "videomae")
    return folder


def test_networks_from_a_folder_give_a_vector_per_pose_or_per_video(small_networks, scene):
    videos = [scene(1, 6, 48), scene(2, 9, 48)]
    pictures = features.PictureModel(small_networks / "dinov2").features(videos)
    assert [found.shape for found in pictures] == [(6, 32), (9, 32)]
    alone = features.PictureModel(small_networks / "dinov2").features(videos[1:])
    assert np.allclose(pictures[1], alone[0], atol=1e-5)
    windows = features.VideoModel(small_networks / "videomae").features(videos)
    assert [found.shape for found in windows] == [(1, 32), (1, 32)]


def test_subject_consistency_ranks_a_still_before_a_scene_before_poses_of_different_scenes(small_networks, scene):
    clip = scene(1, 6, 48)
    mixed = np.concatenate([scene(seed, 1, 48) for seed in range(20, 26)])
    found = features.PictureModel(small_networks / "dinov2").features([clip[:1].repeat(6, axis=0), clip, mixed])
    still, moving, changing = map(features.consistency, found)
    assert still == pytest.approx(1, abs=1e-5)
    assert still > moving > changing
