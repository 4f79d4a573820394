import importlib.util
import subprocess
import sys
import urllib.request
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import tiny
from brickreel import config, files
from brickreel.evaluation import generate, web
from brickreel.films import video
from brickreel.models import text_to_video
from brickreel.models.pipeline import OpenSoraPipeline
from brickreel.models.stdit2.convert import command as convert
from films import synth

ROOT = Path(__file__).resolve().parent.parent.parent
DEFAULTS = {
    "sampler": "iddpm", "num_frames": 3, "height": 32, "width": 48, "fps": 6.0,
    "num_inference_steps": 2, "guidance_scale": 2.0, "guidance_channels": 3, "hold": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An exported folder that tells the settings its run was sampled with."""
    folder = tmp_path_factory.mktemp("generate")
    base = config.load({"base": tiny.base_settings(tiny.save_base(folder / "base"))}).base
    OpenSoraPipeline.from_base(base).save_pretrained(folder / "model")
    files.write_json(folder / "model" / generate.DEFAULTS, DEFAULTS)
    return folder / "model"


def call(*words):
    """Run `brickreel generate` in this process; returns the exit status."""
    return CliRunner().invoke(generate.command, [*map(str, words), "--device", "cpu"]).exit_code


def test_the_models_own_settings_are_the_defaults(model, tmp_path):
    assert call("--model", model, "--prompt", "a red car", "--out", tmp_path / "car.mp4") == 0
    frames = video.read(tmp_path / "car.mp4")
    assert frames.shape == (6, 32, 48, 3)  # three poses on twos
    assert abs(frames[0].astype(int) - frames[1]).mean() < 3


@pytest.mark.parametrize("objective", ["iddpm", "rectified-flow"])
def test_guidance_acts_on_the_objectives_own_channels_unless_the_run_names_some(objective):
    assert generate.sampling(config.Sample(), objective)["guidance_channels"] is None
    assert generate.sampling(config.Sample(guidance_channels=2), objective)["guidance_channels"] == 2


def test_several_videos_go_into_a_folder_and_are_what_they_are_alone(model, tmp_path):
    words = ("--model", model, "--hold", 1, "--prompt", "a house")
    told = [*words, "--prompt", "a car", "--prompt", "a car", "--seed", 1, "--seed", 2]
    assert call(*told, "--out", tmp_path / "all") == 0
    assert len(list((tmp_path / "all").glob("*.mp4"))) == 4
    assert call(*words, "--seed", 2, "--out", tmp_path / "alone") == 0
    [alone] = (tmp_path / "alone").iterdir()
    assert alone.read_bytes() == (tmp_path / "all" / alone.name).read_bytes()


def test_a_picture_becomes_the_first_frame(model, tmp_path):
    Image.new("RGB", (100, 60), (250, 10, 10)).save(tmp_path / "red.png")
    assert generate.read_reference(tmp_path / "red.png", 32, 48).shape == (1, 32, 48, 3)
    assert (generate.read_reference(tmp_path / "red.png", 32, 48) == (250, 10, 10)).all()
    words = ("--model", model, "--prompt", "a car", "--reference", tmp_path / "red.png")
    assert call(*words, "--mask-strategy", "0,0,0,-1,1", "--out", tmp_path / "car.mp4") == 0
    video.write(tmp_path / "clip.mp4", np.full((4, 36, 64, 3), 90, np.uint8), 8)
    assert generate.read_reference(tmp_path / "clip.mp4", 32, 48).shape == (4, 32, 48, 3)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad.png cannot be read"):
        generate.read_reference(tmp_path / "bad.png", 32, 48)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_reference_from_a_camera_held_sideways_is_shown_as_a_player_shows_it(turn, tmp_path):
    drawn = np.zeros((32, 64, 3), np.uint8)
    drawn[:16, :16] = 250
    video.write(tmp_path / "clip.mp4", [drawn] * 2, 8)
    synth.turn(tmp_path / "clip.mp4", turn)
    height, width = (64, 32) if turn % 180 else (32, 64)
    words = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "clip.mp4"), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    player = subprocess.run(words, capture_output=True, check=True).stdout
    wanted = np.frombuffer(player, np.uint8).reshape(2, height, width, 3)
    found = generate.read_reference(tmp_path / "clip.mp4", height, width)
    assert abs(found.astype(int) - wanted).mean() < 2
    upright = Image.fromarray(found[0])
    exif = Image.Exif()
    exif[0x0112] = {90: 6, 180: 3, 270: 8}[turn]
    Image.fromarray(drawn).save(tmp_path / "photo.png", exif=exif)
    photo = generate.read_reference(tmp_path / "photo.png", height, width)[0]
    assert abs(photo.astype(int) - np.asarray(upright)).mean() < 2


@pytest.fixture
def fast(model, tmp_path):
    """A model whose run was sampled with the fast sampler."""
    files.write_json(tmp_path / "fast" / generate.DEFAULTS, DEFAULTS | {"sampler": "dpm-solver++"})
    for part in model.iterdir():
        if part.name != generate.DEFAULTS:
            (tmp_path / "fast" / part.name).symlink_to(part)
    return tmp_path / "fast"


@pytest.mark.parametrize("more", [("--reference", "red.png"), ("--loops", 2, "--condition-frames", 1)])
def test_a_model_that_was_sampled_fast_goes_on_from_frames_with_the_sampler_it_was_trained_for(
    more, fast, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate, "set_up_logging", lambda: None)
    monkeypatch.setattr(generate.logger, "propagate", True)
    Image.new("RGB", (48, 32), (250, 10, 10)).save("red.png")
    words = ("--model", fast, "--prompt", "a car", "--out", "car.mp4")
    assert call(*words, "--steps", 3, *more) == 0
    assert "3 steps of iddpm, since the model's own sampler, dpm-solver++, takes no reference" in caplog.text
    assert call(*words, "--sampler", "dpm-solver++", *more) == 1
    assert "that the weights were trained for (`--sampler iddpm`)" in caplog.text


def test_the_sampler_that_takes_the_fast_ones_place_has_its_usual_steps():
    stored = DEFAULTS | {"sampler": "dpm-solver++", "num_inference_steps": 20}
    usual = {"sampler": "iddpm", "num_inference_steps": 100}
    assert generate.suited(stored, {}, continues=False) == stored
    assert generate.suited(stored, {"fps": 8.0}, continues=True) == stored | usual | {"fps": 8.0}
    assert generate.suited(stored, {"num_inference_steps": 30}, continues=True)["num_inference_steps"] == 30
    assert generate.suited(DEFAULTS, {}, continues=True) == DEFAULTS


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "none", "--prompt", "x"], "none has no model_index.json"),
        (["--model", "M", "--prompt", "x", "--prompt", "y", "--out", "a.mp4"], "is one file, but 2 videos"),
        (["--model", "M", "--prompt", "x", "--mask-strategy", "0"], "give --reference too"),
        (["--model", "M", "--prompt", "x", "--loops", "2"], "condition_frames from 1 to 2"),
        (["--model", "M", "--prompt", "x", "--sampler", "rectified-flow"], "does not suit weights trained for iddpm"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, sentence, model, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate.logger, "propagate", True)
    monkeypatch.setattr(generate, "set_up_logging", lambda: None)
    assert call(*[str(model) if word == "M" else word for word in words]) == 1
    assert sentence in caplog.text
    assert "Traceback" not in caplog.text
    assert not list(tmp_path.glob("*.mp4"))


def test_memory_that_does_not_suffice_is_a_sentence(model, tmp_path, monkeypatch):
    def call(self, *_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    pipeline = generate.load_pipeline(str(model), "cpu")
    monkeypatch.setattr(OpenSoraPipeline, "__call__", call)
    with pytest.raises(ValueError, match="out of memory with 3 poses of 48 x 32: ask for fewer"):
        generate.make(pipeline, "a car", 0, tmp_path / "car.mp4", DEFAULTS)


def test_the_model_that_is_shipped_is_asked_for_what_it_has_learned():
    demo = config.load(ROOT / "config.yaml", ROOT / "config/demo.yaml").sample
    assert generate.defaults("builtin:tiny") == generate.sampling(demo)
    assert generate.defaults("nowhere") == generate.sampling(config.Sample())


def test_help_teaches_by_examples_and_loads_no_torch():
    script = (
        "import sys; from brickreel.evaluation.generate import command\n"
        "try: command(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for part in ("--reference first.jpg", "dpm-solver++", "|0|a red tower grows|2|the tower falls", "--mask-strategy"):
        assert part in done.stdout


def test_the_samplers_offered_are_the_pipelines():
    assert generate.SAMPLERS == text_to_video.SAMPLERS


def test_convert_says_what_it_wrote(tmp_path):
    tiny.save_transformer(tmp_path / "in")
    done = CliRunner().invoke(convert, [str(tmp_path / "in"), str(tmp_path / "out"), "--dtype", "bfloat16"])
    assert done.exit_code == 0
    assert (tmp_path / "out" / "diffusion_pytorch_model.safetensors").is_file()
    done = CliRunner().invoke(convert, [str(tmp_path), str(tmp_path / "again")])
    assert done.exit_code == 1
    assert not (tmp_path / "again").exists()


@pytest.mark.skipif(importlib.util.find_spec("gradio") is not None, reason="gradio is installed")
def test_without_gradio_web_says_how_to_get_it(model, monkeypatch, caplog):
    monkeypatch.setattr(web, "set_up_logging", lambda: None)
    monkeypatch.setattr(generate.logger, "propagate", True)
    assert CliRunner().invoke(web.command, ["--model", str(model)]).exit_code == 1
    assert "pip install 'brickreel[web]'" in caplog.text


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs brickreel[web]")
def test_the_page_is_served_to_this_machine_and_makes_a_video(model, tmp_path):
    blocks = web.page(generate.load_pipeline(str(model), "cpu"), DEFAULTS, tmp_path, "tiny")
    _, url, _ = blocks.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, allowed_paths=[tmp_path])
    try:
        with urllib.request.urlopen(url) as page:
            assert page.status == 200
        answer = blocks.fns[0].fn("a car", None, 0, 3, 2, 2.0, 8.0)
        assert video.read(answer).shape == (6, 32, 48, 3)
    finally:
        blocks.close()


def test_the_page_of_a_model_that_was_sampled_fast_takes_a_first_frame(fast, tmp_path, monkeypatch):
    gradio = MagicMock()
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    Image.new("RGB", (48, 32), (250, 10, 10)).save(tmp_path / "red.png")
    web.page(generate.load_pipeline(str(fast), "cpu"), generate.defaults(str(fast)), tmp_path, "tiny")
    answer = gradio.Button.return_value.click.call_args.args[0]
    made = answer("a car", str(tmp_path / "red.png"), 0, 3, 3, 2.0, 8.0)
    assert video.read(made).shape == (6, 32, 48, 3)
