import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from brickreel.models import load
from brickreel.models.autoencoder import sample_posterior
from brickreel.models.stdit2 import STDiT2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_base(tmp_path_factory.mktemp("base"))


class Harmful:
    def __reduce__(self):
        return print, ("code was run",)


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


def test_a_part_without_all_its_files_is_not_located_as_whole(folder, tmp_path):
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    for part in ("transformer", "autoencoder", "text_encoder"):
        own = shutil.copytree(folder / part, tmp_path / part)
        assert load.locate(part, str(own), weights=True) == own
        file = next(own.glob("*.safetensors")).name
        (own / file).rename(own / "model-00001-of-00002.safetensors")
        with pytest.raises(FileNotFoundError, match=rf"base\.{part}: .* has no {file} or .*: put it there"):
            load.locate(part, str(own), weights=True)
        assert load.locate(part, str(own)) == own
        shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (own / f"{file}.index.json").write_text(json.dumps({"weight_map": shards}))
        for load_it in (lambda part, path: load.locate(part, path, weights=True), load.fingerprint):
            with pytest.raises(FileNotFoundError, match=r"has no model-00002-of-00002\.safetensors, so that"):
                load_it(part, str(own))
        (own / "model-00002-of-00002.safetensors").touch()
        assert load.locate(part, str(own), weights=True) == own


def test_an_incomplete_download_is_said_with_the_command(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--some--model" / "snapshots" / revision
    shutil.copytree(folder / "text_encoder", snapshot)
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json or .*: run `hf download some/model --revision"):
        load.locate("text_encoder", "some/model", revision, weights=True)


def old_layout(folder, target):
    """A text encoder as T5's authors published it: one folder, and a vocabulary that sentencepiece wrote."""
    shutil.copytree(folder / "text_encoder", target)
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.copyfile(folder / "tokenizer" / name, target / name)
    return target


def test_an_old_vocabulary_is_read_and_none_is_never_made_up(folder, tmp_path):
    old = old_layout(folder, tmp_path / "text_encoder")
    wanted = load.text_encoder(str(folder / "text_encoder")).encode(["a red car"])[0]
    assert torch.equal(load.text_encoder(str(old)).encode(["a red car"])[0], wanted)
    for spoil in (lambda path: path.write_bytes(b""), lambda path: path.unlink()):
        spoil(old / "spiece.model")
        for read in (load.text_encoder, lambda path: load.tokenizer(tmp_path / "text_encoder")):
            with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json or spiece\.model that is not empty"):
                read(str(old))
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    assert torch.equal(load.text_encoder(str(old)).encode(["a red car"])[0], wanted)
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer cannot be loaded"):
        load.text_encoder(str(old))


def test_a_tokenizers_code_is_never_run_nor_asked_for(folder, tmp_path, monkeypatch):
    own = shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    (own / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}})
    )
    (own / "mine.py").write_text("raise SystemExit('code was run')")
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked"))
    with pytest.raises(ValueError, match="cannot be loaded as AutoTokenizer"):
        load.tokenizer(own)


def without(start):
    return lambda state: {name: tensor for name, tensor in state.items() if not name.startswith(start)}


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("autoencoder", without("encoder.conv_in.weight"), "1 names differ: missing encoder.conv_in.weight"),
        ("autoencoder", lambda s: s | {"encoder.conv_in.bias": torch.zeros(3)}, "misshapen encoder.conv_in.bias"),
        ("autoencoder", lambda s: s | {"decoder.more": torch.zeros(3)}, "unexpected decoder.more"),
        ("text_encoder", without("encoder.block.0.layer.0."), "missing encoder.block.0.layer.0.SelfAttention.k.weight"),
        ("text_encoder", without("shared."), "missing shared.weight"),
        (
            "text_encoder",
            lambda s: s | {"encoder.final_layer_norm.weight": torch.zeros(3)},
            "misshapen encoder.final_layer_norm.weight",
        ),
        ("text_encoder", lambda s: s | {"encoder.block.1.x": torch.zeros(3)}, "unexpected encoder.block.1.x"),
    ],
)
def test_weights_of_the_encoders_must_fit_name_by_name(part, change, words, folder, tmp_path):
    own = shutil.copytree(folder / part, tmp_path / part)
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    file = next(own.glob("*.safetensors"))
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=words):
        getattr(load, part)(str(own))


def test_a_shard_without_what_its_index_names_is_noticed(folder, tmp_path):
    load.autoencoder(str(folder / "autoencoder")).vae.save_pretrained(tmp_path, max_shard_size="20KB")
    shard = next(tmp_path.glob("*-00002-of-*.safetensors"))
    name, *_ = state = load_file(shard)
    save_file(without(name)(state), shard, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"missing {name}"):
        load.autoencoder(str(tmp_path))


def test_published_names_that_are_not_needed_or_are_old_are_accepted(folder, tmp_path):
    """T5 with its decoder, and the attention's names of 2022 in an autoencoder."""
    words = old_layout(folder, tmp_path / "words")
    state = load_file(words / "model.safetensors")
    more = {"decoder.block.0.x": torch.zeros(1), "lm_head.weight": torch.zeros(1)}
    save_file(state | more, words / "model.safetensors", metadata={"format": "pt"})
    load.text_encoder(str(words))
    images = shutil.copytree(folder / "autoencoder", tmp_path / "images")
    file, found = images / "diffusion_pytorch_model.safetensors", {}
    for name, tensor in load_file(images / "diffusion_pytorch_model.safetensors").items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(new, old)
        found[name] = tensor
    save_file(found, file, metadata={"format": "pt"})
    again = load.autoencoder(str(images)).vae.state_dict()
    wanted = load.autoencoder(str(folder / "autoencoder")).vae.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("part", ["autoencoder", "text_encoder"])
def test_code_in_a_pickled_part_is_never_run(part, folder, tmp_path, capsys):
    own = shutil.copytree(folder / part, tmp_path / part)
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    next(own.glob("*.safetensors")).unlink()
    file = own / ("pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin")
    torch.save({"shared.weight": Harmful()}, file)
    with pytest.raises(ValueError, match="cannot be loaded as"):
        getattr(load, part)(str(own))
    file.write_bytes(b"\x80\x02.")
    with pytest.raises(ValueError, match="cannot be loaded as"):
        getattr(load, part)(str(own))
    assert "code was run" not in capsys.readouterr().out


def test_weights_that_are_not_loaded_may_come_and_go(tmp_path):
    model = STDiT2.preset("tiny")
    model.save_pretrained(tmp_path)
    before = load.fingerprint("transformer", str(tmp_path))
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"a full download has these too")
    assert load.fingerprint("transformer", str(tmp_path)) == before
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + " ")
    assert load.fingerprint("transformer", str(tmp_path)) != before
