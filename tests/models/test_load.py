import json
import shutil

import pytest
import torch

import tiny
from brickreel.models import load
from brickreel.models.autoencoder import sample_posterior


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("part", ["transformer", "autoencoder", "text_encoder"])
def test_what_is_not_there_is_said_in_one_sentence_with_the_command(part, offline, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        getattr(load, part)("some/model", revision="abc")
    assert f"base.{part}: 'some/model' is neither a folder nor in the hub cache" in str(caught.value)
    assert "hf download some/model --revision abc" in str(caught.value)
    with pytest.raises(FileNotFoundError, match=f"has no config.json, so that it is not a {part}"):
        getattr(load, part)(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"there is no folder \./models/none"):
        getattr(load, part)("./models/none")
    with pytest.raises(FileNotFoundError, match="ships no model 'builtin:huge'"):
        getattr(load, part)("builtin:huge")


def test_a_hub_name_is_found_in_the_cache_at_its_revision(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = cache / "models--some--model" / "snapshots" / revision
    shutil.copytree(folder / "transformer", snapshot / "deep")
    found = load.locate("transformer", "some/model", revision, "deep")
    assert found.resolve() == (snapshot / "deep").resolve()
    with pytest.raises(FileNotFoundError, match="neither a folder nor in the hub cache"):
        load.locate("transformer", "some/model", "f" * 40, "deep")


def test_the_transformer_is_read_strictly(folder, tmp_path):
    model = load.transformer(str(folder / "transformer"), dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    assert not model.training
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["rope.freqs"]
    with pytest.raises(ValueError, match=r"names differ: missing blocks\.2"):
        load.transformer(str(folder / "transformer"), depth=3)
    with pytest.raises(ValueError, match=r"no setting \['width'\]"):
        load.transformer(str(folder / "transformer"), width=3)


def test_another_model_in_the_folder_is_named(folder, tmp_path):
    other = shutil.copytree(folder / "transformer", tmp_path / "other")
    (other / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="describes a UNet2DModel, not an STDiT2"):
        load.transformer(str(other))
    (other / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load.transformer(str(other))
    (other / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="does not hold a model's settings"):
        load.transformer(str(other))
    for wrong in ({"depth": "four"}, {"num_heads": 0}, {"caption_channels": -1}):
        (other / "config.json").write_text(json.dumps({**tiny.TRANSFORMER, **wrong}))
        with pytest.raises(ValueError, match=r"config\.json has settings that no STDiT2 can have"):
            load.transformer(str(other))


def test_settings_of_the_published_configuration_are_understood(folder, tmp_path):
    """transformers' style, with keywords of optional kernels that do not matter here."""
    other = shutil.copytree(folder / "transformer", tmp_path / "other")
    stored = {**tiny.TRANSFORMER, "architectures": ["STDiT2"], "model_type": "STDiT2", "enable_flash_attn": False}
    (other / "config.json").write_text(json.dumps(stored))
    assert load.transformer(str(other)).config.hidden_size == 48


def test_the_autoencoder_takes_bounded_batches_and_gives_the_same(folder):
    small, large = (load.autoencoder(str(folder / "autoencoder"), frames_per_batch=n) for n in (1, 16))
    pixels = torch.rand(5, 3, 16, 27) * 2 - 1
    mean, logvar = small.encode(pixels)
    assert mean.shape == logvar.shape == (5, 4, 2, 3)
    assert torch.allclose(mean, large.encode(pixels)[0], atol=1e-5)
    assert small.decode(mean).shape == (5, 3, 16, 24)
    assert small.scaling_factor == 0.5
    assert torch.equal(sample_posterior(mean, logvar, None), mean)
    noise = torch.randn_like(mean)
    assert torch.allclose(sample_posterior(mean, logvar, noise), mean + (logvar / 2).exp() * noise)
    wrong = [torch.zeros(3, 16, 16), torch.zeros(1, 4, 16, 16), torch.zeros(1, 3, 4, 16)]
    for pixels in wrong:
        with pytest.raises(ValueError, match="pixels must be"):
            small.encode(pixels)
    with pytest.raises(ValueError, match="latents must be"):
        small.decode(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="at least 1"):
        load.autoencoder(str(folder / "autoencoder"), frames_per_batch=0)


def test_texts_are_not_padded_and_do_not_depend_on_each_other(folder):
    encoder = load.text_encoder(str(folder / "text_encoder"))
    both = encoder.encode(["a red car", "the blue house walks over the bridge"])
    assert [part.shape[1] for part in both] == [16, 16]
    assert len(both[0]) < len(both[1])
    assert torch.equal(encoder.encode(["a red car"])[0], both[0])
    cut = encoder.encode(["the blue house walks over the bridge"], max_tokens=4)[0]
    assert len(cut) == 4
    assert len(encoder.encode([""])[0]) == 1
    with pytest.raises(ValueError, match="at least 1"):
        encoder.encode(["a"], max_tokens=0)


def test_a_scheduler_of_another_kind_is_refused(tmp_path):
    for objective in load.OBJECTIVES:
        load.scheduler(objective).save_pretrained(tmp_path / objective)
        assert type(load.scheduler_of(tmp_path / objective)) is type(load.scheduler(objective))
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "PNDMScheduler"}')
    with pytest.raises(ValueError, match="describes a PNDMScheduler"):
        load.scheduler_of(tmp_path)
    with pytest.raises(FileNotFoundError, match="incomplete"):
        load.scheduler_of(tmp_path / "none")
    with pytest.raises(ValueError, match="choose from iddpm, rectified-flow"):
        load.scheduler("score")
