import io
import json
import logging

import pytest
import torch
from safetensors.torch import save_file

import parity
from brickreel.models.stdit2 import convert, weights


class Harmful:
    def __reduce__(self):
        return print, ("code was run",)


@pytest.fixture(scope="module")
def model():
    return parity.model()


@pytest.fixture
def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def sharded(folder, state, suffix=".bin"):
    """An Open-Sora checkpoint: model/ in two parts with an index."""
    names, parts = sorted(state), {}
    (folder / "model").mkdir(parents=True)
    for number, own in enumerate((names[::2], names[1::2])):
        part = f"pytorch_model-{number:05d}{suffix}"
        torch.save({name: state[name] for name in own}, folder / "model" / part)
        parts |= dict.fromkeys(own, part)
    (folder / "model" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": parts}))


def written(tmp_path, kind, state):
    """The same weights in one of the forms that Open-Sora and its users have."""
    source = tmp_path / kind
    if kind == "file.safetensors":
        save_file(state, source)
    elif kind == "file.pt":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, source)
    elif kind == "enveloped.pth":
        torch.save({"state_dict": state, "step": 7}, source)
    elif kind == "sharded":
        sharded(source, state)
    elif kind == "ema":
        sharded(source, {name: torch.zeros_like(tensor) for name, tensor in state.items()})
        torch.save(state, source / "ema.pt")
    return source


@pytest.mark.parametrize("kind", ["file.safetensors", "file.pt", "enveloped.pth", "sharded", "ema"])
def test_every_form_converts_to_the_same_model(kind, state, tmp_path):
    convert.convert(written(tmp_path, kind, state), tmp_path / "out")
    from brickreel.models import load

    again = load.transformer(str(tmp_path / "out"))
    assert set(again.state_dict()) == set(state)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in state.items())
    assert again.config.depth == 2
    assert again.config.num_heads == 2
    assert again.config.model_max_length == 12


def test_raw_weights_are_taken_when_asked_for(state, tmp_path):
    out = convert.convert(written(tmp_path, "ema", state), tmp_path / "out", prefer_ema=False)
    assert not any(tensor.any() for tensor in out.state_dict().values())


def test_which_weights_were_read_is_said(state, tmp_path, caplog):
    """Of a file that has both, of a folder that has both, and of one that has no moving average."""
    caplog.set_level(logging.INFO)
    both = tmp_path / "both.pt"
    torch.save({"ema": state, "model": {name: tensor + 1 for name, tensor in state.items()}}, both)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    torch.save(state, mixed / "ema.pt")
    save_file({name: tensor + 1 for name, tensor in state.items()}, mixed / "model.safetensors")
    name = "t_block.1.bias"
    for source, file in ((both, both), (mixed, mixed)):
        for prefer_ema, added in ((True, 0), (False, 1)):
            caplog.clear()
            found = weights.read_checkpoint(source, prefer_ema)
            assert torch.equal(found[name], state[name] + added)
            assert str(file) in caplog.text
            assert ("the moving average" if prefer_ema else "raw weights") in caplog.text
    caplog.clear()
    weights.read_checkpoint(written(tmp_path, "file.pt", state))
    assert "file.pt: raw weights, for nothing there is called a moving average" in caplog.text
    (mixed / "model.safetensors").unlink()
    weights.read_checkpoint(mixed, prefer_ema=False)
    assert "ema.pt: the moving average, for there are no raw weights" in caplog.text


def described(folder, state, **settings):
    """A folder with these weights, and a config.json that says this of them."""
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "STDiT2", **parity.SIZES, **settings}))
    return folder


def test_what_the_weights_do_not_tell_is_taken_from_the_settings_beside_them(state, tmp_path):
    told = {"deviations": ["exact-scalars"], "class_dropout_prob": 0.25, "attn_implementation": "sdpa"}
    source = described(tmp_path / "in", state, **told, input_sq_size=256, model_max_length=7, mlp_ratio=4.0)
    convert.convert(source / "model.safetensors", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    # No row of the null text is lost that nobody asked to cut.
    assert found | told | {"input_sq_size": 256, "model_max_length": 12} == found
    convert.convert(source, tmp_path / "out", input_sq_size=1024, text_tokens=5)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found | told | {"input_sq_size": 1024, "model_max_length": 5} == found


def test_weights_that_the_settings_beside_them_do_not_describe_are_refused(state, tmp_path):
    without_last = {name: tensor for name, tensor in state.items() if not name.startswith("blocks.1.")}
    with pytest.raises(ValueError, match=r"config\.json says depth 2 and not 1.*weights are missing"):
        convert.convert(described(tmp_path / "short", without_last), tmp_path / "out")
    with pytest.raises(ValueError, match="describes a UNet2DModel, not an STDiT2"):
        convert.convert(described(tmp_path / "other", state, _class_name="UNet2DModel"), tmp_path / "out")
    with pytest.raises(ValueError, match=r"no STDiT2 can have: deviations \['bright'\] are not known"):
        convert.convert(described(tmp_path / "wrong", state, deviations=["bright"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("blocks.0.attn.q_norm.weight", lambda _: torch.zeros(0), r"q_norm.weight is \[0\]"),
        ("blocks.0.attn.q_norm.weight", lambda _: torch.tensor(1.0), r"q_norm.weight is \[\]"),
        ("final_layer.linear.weight", lambda _: torch.tensor(1.0), r"final_layer.linear.weight is \[\]"),
        ("y_embedder.y_embedding", lambda y: y[:0], r"y_embedding is \[0, 48\]"),
        ("y_embedder.y_embedding", lambda y: y.to_sparse(), "y_embedding is .*sparse"),
        ("t_block.1.bias", lambda tensor: tensor.int(), "t_block.1.bias is torch.int32 .* dense and of real numbers"),
        ("t_block.1.bias", lambda tensor: tensor.to_sparse(), "t_block.1.bias is .*sparse"),
        ("t_block.1.bias", lambda tensor: tensor.to("meta"), "t_block.1.bias is .* on meta"),
        ("t_block.1.bias", lambda tensor: tensor.to(torch.complex64), "t_block.1.bias is torch.complex64"),
        ("t_block.1.bias", lambda tensor: tensor * float("nan"), "not finite in torch.float16: t_block.1.bias"),
        ("t_block.1.bias", lambda tensor: tensor + 1e6, "not finite in torch.float16: t_block.1.bias"),
        ("x_embedder.proj.weight", lambda tensor: tensor[:140], "heads of 72 channels do not make up 140"),
    ],
)
def test_tensors_that_no_model_has_are_named_and_nothing_is_written(name, change, words, state, tmp_path):
    torch.save({**state, name: change(state[name])}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=words):
        convert.convert(tmp_path / "file.pt", tmp_path / "out", dtype=torch.float16)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("length", [5, 20])
def test_the_null_text_is_resized_as_the_original_does(length, state, tmp_path):
    source = written(tmp_path, "file.pt", state)
    null = convert.convert(source, tmp_path / "out", text_tokens=length).y_embedder.y_embedding
    stored = state["y_embedder.y_embedding"]
    assert null.shape[0] == length
    assert torch.equal(null[:5], stored[:5])
    if length > 12:
        assert torch.equal(null[12:], stored[-1:].expand(8, -1))


def test_missing_rotation_frequencies_are_made_and_computed_names_ignored(state, tmp_path):
    frequencies = state.pop("rope.freqs")
    state["pos_embed.inv_freq"] = torch.zeros(3)
    out = convert.convert(written(tmp_path, "file.pt", state), tmp_path / "out")
    assert torch.equal(out.rope.freqs, frequencies)
    assert not out.rope.freqs.requires_grad


def test_every_mismatch_is_named_and_nothing_is_written(state, tmp_path):
    del state["blocks.1.attn.proj.bias"]
    state["blocks.0.extra"] = torch.zeros(1)
    state["t_block.1.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match="3 names differ") as caught:
        convert.convert(written(tmp_path, "file.pt", state), tmp_path / "out")
    for part in ("missing blocks.1.attn.proj.bias", "unexpected blocks.0.extra", "t_block.1.bias is [3] but should be"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_writing_that_fails_leaves_what_was_there(state, tmp_path, monkeypatch):
    out = tmp_path / "out"
    source = written(tmp_path, "file.pt", state)
    convert.convert(source, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == {"config.json", "diffusion_pytorch_model.safetensors"}

    def full(tensors, path, **_):
        with open(path, "wb") as stream:
            stream.write(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        convert.convert(source, out, dtype=torch.bfloat16)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_another_model_is_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "unet.pt")
    with pytest.raises(ValueError, match=r"is not an STDiT2 of Open-Sora 1.1: it has no x_embedder"):
        convert.convert(tmp_path / "unet.pt", tmp_path / "out")


def test_code_in_a_pickle_is_never_run(tmp_path, capsys):
    torch.save({"weight": Harmful()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="would run code"):
        weights.read_checkpoint(tmp_path / "bad.pt")
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["file.safetensors", "file.pt"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.6, 0.999])
def test_truncated_files_are_named(kind, share, state, tmp_path):
    source = written(tmp_path, kind, state)
    source.write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])
    with pytest.raises(ValueError, match=kind):
        weights.read_checkpoint(source)


def test_bytes_that_are_no_pickle_are_named_whatever_they_lead_to(tmp_path):
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, stream, _use_new_zipfile_serialization=False)
    legacy = stream.getvalue()
    key = legacy[legacy.index(b"FloatStorage") :].split(b"X", 1)[1][4:10]
    lost = legacy.replace(key, b"000000", 1)
    for content in (b"\x80\x02.", b"\x80\x02X\x01", lost):
        (tmp_path / "file.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"file\.pt is damaged or truncated"):
            weights.read_checkpoint(tmp_path / "file.pt")


def test_an_index_may_not_lead_out_of_its_folder(state, tmp_path):
    source = written(tmp_path, "sharded", state)
    index = source / "model" / "pytorch_model.bin.index.json"
    for value, words in (("../../secret.bin", "not beside it"), ("gone.bin", "the checkpoint is incomplete")):
        index.write_text(json.dumps({"weight_map": {"x": value}}))
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            weights.read_checkpoint(source)
    for value in (5, None, ["x"]):
        index.write_text(json.dumps({"weight_map": {"x": value}}))
        with pytest.raises(ValueError, match="not an index of sharded weights"):
            weights.read_checkpoint(source)


def test_a_folder_without_weights_says_what_it_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither safetensors nor an Open-Sora checkpoint"):
        weights.read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="brickreel convert"):
        weights.read_safetensors(tmp_path)
