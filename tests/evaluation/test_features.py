import json
import random
import string

import numpy as np
import pytest
import torch

import parity
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
    before = torch.random.get_rng_state(), random.getstate(), torch.are_deterministic_algorithms_enabled(), _cudnn()
    features.transnetv2([scene(0, 4)])
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1:] == (random.getstate(), torch.are_deterministic_algorithms_enabled(), _cudnn())


def _cudnn():
    flags = torch.backends.cudnn
    return flags.enabled, flags.benchmark, flags.deterministic, flags.allow_tf32


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
    save_clip(folder / "clip")
    return folder


def save_clip(folder):
    """CLIP that reads single letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    ends = ["<|startoftext|>", "<|endoftext|>"]
    letters = [letter + end for letter in string.ascii_lowercase for end in ("", "</w>")]
    vocabulary = {token: number for number, token in enumerate([*letters, *ends])}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True, model_max_length=16)
    edge = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(image_processor=CLIPImageProcessor(**edge), tokenizer=tokenizer).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": len(vocabulary), "max_position_embeddings": 16, "bos_token_id": 52, "eos_token_id": 53}
    pictures = {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=sizes | words, vision_config=sizes | pictures, projection_dim=24)
    CLIPModel(config).save_pretrained(folder)


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


def test_prompt_agreement_is_of_each_video_with_its_own_text(small_networks, scene):
    model = features.ClipModel(small_networks / "clip")
    videos, texts = [scene(1, 6, 48), scene(2, 9, 48)], ["a red car", "the blue house"]
    found = model.agreements(videos, texts)
    alone = [model.agreements([video], [text])[0] for video, text in zip(videos, texts, strict=True)]
    assert found == alone
    assert len({*found, *model.agreements(videos, texts[::-1])}) == 4
    assert all(-1 <= value <= 1 for value in found)


def seen(network, folder, videos, **on):
    """Vectors of every video by one of the networks; of CLIP its agreement, as a vector of one."""
    if network == "transnetv2":
        return features.transnetv2(videos, **on)
    if network == "clip":
        texts = ["a red car", "the blue house", "a dog"]
        return [np.float32([value]) for value in features.ClipModel(folder / "clip", **on).agreements(videos, texts)]
    kind = features.PictureModel if network == "dinov2" else features.VideoModel
    return kind(folder / network, **on).features(videos)


@pytest.mark.parametrize("device", parity.DEVICES)
@pytest.mark.parametrize("network", ["transnetv2", "dinov2", "videomae", "clip"])
def test_a_network_sees_on_every_device_what_it_sees_on_the_cpu(network, device, small_networks, scene):
    # The longest has more poses than DINOv2 takes into one pass on a GPU.
    videos = [scene(1, 16), scene(2, 70), scene(3, 16)]
    wanted = seen(network, small_networks, videos)
    found = seen(network, small_networks, videos, device=torch.device(device))
    for mine, theirs in zip(found, wanted, strict=True):
        assert isinstance(mine, np.ndarray)
        assert mine.dtype == np.float32
        if device == "cpu":
            assert np.array_equal(mine, theirs)
        else:
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("network", ["transnetv2", "dinov2", "videomae", "clip"])
def test_all_that_a_network_computes_with_is_on_its_device(network, small_networks, scene, monkeypatch):
    # A device that computes nothing stands in for a GPU: it too refuses tensors of another one.
    came = []

    def home(vectors):
        came.append(vectors.device.type)
        return np.zeros(vectors.shape, np.float32)

    monkeypatch.setattr(features, "_home", home)
    videos = [scene(1, 16), scene(2, 70), scene(3, 16)]
    found = seen(network, small_networks, videos, device=torch.device("meta"))
    assert came == ["meta"] * 3
    monkeypatch.undo()
    assert [one.shape for one in found] == [one.shape for one in seen(network, small_networks, videos)]


@pytest.mark.gpu
def test_distances_and_drift_of_a_gpu_are_those_of_a_cpu(scene):
    videos = [scene(seed) for seed in range(12)]
    found = {}
    for device in ("cpu", "cuda"):
        vectors = features.transnetv2(videos, torch.device(device))
        sides = vectors[:6], vectors[6:]
        measured = [distance.frechet(*map(np.concatenate, sides)), distance.kernel(*sides)]
        found[device] = [*measured, *map(features.drift, vectors)]
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-3, abs=1e-5)


@pytest.mark.gpu
def test_a_gpu_sees_the_same_twice(scene):
    videos = [scene(seed) for seed in range(12)]
    first, second = (features.transnetv2(videos, torch.device("cuda")) for _ in range(2))
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(first, second, strict=True))


@pytest.mark.gpu
def test_no_video_waits_for_the_gpu_until_all_are_queued(scene, monkeypatch):
    videos = [scene(1, 12), scene(2, 9), scene(3, 12)]
    features.transnetv2(videos, torch.device("cuda"))
    monkeypatch.setattr(features, "_home", lambda vectors: vectors)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        features.transnetv2(videos, torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_networks_compute_without_tf32_and_reproducibly(scene, monkeypatch):
    blocks, during = features._blocks, []

    def watched(*given):
        during.append(_cudnn())
        return blocks(*given)

    monkeypatch.setattr(features, "_blocks", watched)
    features.transnetv2([scene(0, 4)])
    assert during == [(True, False, True, False)]


def test_a_long_video_in_several_passes_is_the_same_video(small_networks, scene):
    whole, parted = (features.PictureModel(small_networks / "dinov2") for _ in range(2))
    parted.most = 4
    videos = [scene(1, 8, 48), scene(2, 9, 48), scene(3, 3, 48)]
    for mine, theirs in zip(parted.features(videos), whole.features(videos), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("network", ["dinov2", "videomae"])
def test_vectors_keep_nothing_else_in_memory(network, small_networks, scene):
    for vectors in seen(network, small_networks, [scene(1, 6, 48), scene(2, 9, 48)]):
        assert torch.from_numpy(vectors).untyped_storage().nbytes() == vectors.nbytes
