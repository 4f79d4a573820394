import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from brickreel import config
from brickreel.training.assignment import Shape
from brickreel.training.encoding import Encoder, choose_device, read_still


@pytest.mark.parametrize(("visible", "taken"), [(8, 3), (1, 0), (2, 1)])
def test_a_rank_takes_one_of_the_gpus_that_it_sees(monkeypatch, visible, taken):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert choose_device("auto", 3) == torch.device("cuda", taken)
    assert choose_device("cpu", 3) == torch.device("cpu")


def test_a_gpu_that_is_asked_for_in_vain_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 3) == torch.device("cpu")
    with pytest.raises(ValueError, match="torch finds no GPU: use auto or cpu"):
        choose_device("cuda")


@pytest.mark.parametrize(("dtype", "advice"), [("float16", ": set encode.dtype"), ("bfloat16", "$")])
def test_a_text_that_is_not_finite_fails_its_clip(dtype, advice):
    encoder = Encoder(None, None, config.Encode(dtype=dtype), torch.device("cpu"))
    text = torch.full((3, 8), torch.inf).bfloat16()
    with pytest.raises(ValueError, match=f"a.mp4: the text encoder's output is not finite{advice}"):
        encoder.clip({"path": "a.mp4", "kind": "clip"}, {}, text)


def test_a_photo_of_a_camera_held_upright_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    stored = Image.new("RGB", (30, 20))
    stored.paste((200, 10, 10), (0, 0, 10, 10))
    stored.save(tmp_path / "photo.png", exif=exif)
    found = read_still(str(tmp_path / "photo.png"))
    assert found.shape == (30, 20, 3)
    assert found[0, 19].tolist() == [200, 10, 10]


@pytest.mark.gpu
def test_a_gpu_encodes_what_a_cpu_encodes(tmp_path):
    base = tiny.base_settings(tiny.save_base(tmp_path))
    settings = config.load({"base": base, "encode": {"dtype": "float32"}})
    frames = np.random.default_rng(0).integers(0, 256, (5, 40, 70, 3), dtype=np.uint8)
    found = {}
    for name in ("cpu", "cuda"):
        encoder = Encoder.load(settings.base, settings.encode, torch.device(name))
        shape = Shape("64p", "0.57", 5, 32, 64)
        found[name] = (*encoder.posterior(frames, shape, 0.5), *encoder.texts(["a red car", "a house turns"]))
    for mine, theirs in zip(found["cuda"], found["cpu"], strict=True):
        assert mine.device.type == "cpu"
        torch.testing.assert_close(mine, theirs, atol=0.02, rtol=0.02)
