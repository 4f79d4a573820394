"""The base model that brickreel ships: small, safe, whole, and better than a fresh one on what it has not seen."""

import math

import pytest
import torch

from brickreel import files
from brickreel.models import load
from brickreel.models.stdit2 import STDiT2
from brickreel.models.text_encoder import encode_prompt
from brickreel.training.tiny import autoencoder as ours
from brickreel.training.tiny import footage, transformer
from brickreel.training.tiny.__main__ import ASSETS

UNSEEN = 4321
CLIPS = 6
LIMIT_BYTES = 8_000_000
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple")


@pytest.fixture(scope="module")
def autoencoder():
    return load.autoencoder("builtin:tiny")


@pytest.fixture(scope="module")
def text_encoder():
    return load.text_encoder("builtin:tiny")


@pytest.fixture(scope="module")
def shipped(text_encoder):
    model = transformer.Conditioned(len(text_encoder.tokenizer))
    model.text_encoder.load_state_dict(text_encoder.model.state_dict())
    model.transformer = load.transformer("builtin:tiny")
    return model.eval()


@pytest.fixture(scope="module")
def unseen(autoencoder, text_encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp("unseen") / "latents.safetensors"
    return transformer.encode(autoencoder, text_encoder.tokenizer, CLIPS, footage.FRAMES, UNSEEN, path)


def test_it_is_small_and_holds_only_safetensors_and_json():
    found = [path for path in ASSETS.rglob("*") if path.is_file()]

    assert {path.suffix for path in found} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in found) <= LIMIT_BYTES


def test_drawn_pictures_survive_the_autoencoder(autoencoder):
    pictures = ours.to_tensor(footage.stills(16, UNSEEN))
    mean, _ = autoencoder.encode(pictures)

    psnr = ours.psnr_db(autoencoder.decode(mean), pictures)

    assert psnr[::2].mean() > 20, "bricks"
    assert psnr[1::2].mean() > 22, "shapes"


def test_latents_have_about_unit_deviation(unseen, autoencoder):
    assert 0.75 < unseen["mean"].float().std() * autoencoder.scaling_factor < 1.33


def test_the_text_encoder_tells_colours_apart(text_encoder):
    sentence = "A large {} subject in the centre stays still."
    place = 2
    words = [encode_prompt(text_encoder.tokenizer, text_encoder.model, sentence.format(c), 64)[place] for c in COLOURS]
    alike = torch.nn.functional.cosine_similarity(torch.stack(words)[:, None], torch.stack(words)[None], dim=-1)

    assert (alike - torch.eye(len(COLOURS))).max() < 0.9


def test_unseen_shapes_cost_it_far_less_than_a_fresh_model(shipped, unseen, autoencoder):
    fresh = transformer.Conditioned(len(load.tokenizer(ASSETS / "text_encoder")))

    trained_loss = transformer.heldout(shipped, unseen, autoencoder.scaling_factor, UNSEEN)
    fresh_loss = transformer.heldout(fresh, unseen, autoencoder.scaling_factor, UNSEEN)

    assert trained_loss < 0.5 * fresh_loss


def test_the_right_captions_help_it(shipped, unseen, autoencoder):
    own = transformer.heldout(shipped, unseen, autoencoder.scaling_factor, UNSEEN)
    others = transformer.heldout(shipped, unseen, autoencoder.scaling_factor, UNSEEN, swapped=True)

    assert own < others


def test_its_log_says_how_it_was_made_and_its_losses_fell():
    log = files.read_json(ASSETS / "log.json")

    for part, name in (("autoencoder", "absolute"), ("transformer", "loss_stills")):
        assert log[part]["command"].startswith(f"python -m brickreel.training.tiny {part} --steps ")
        curve = [row[name] for row in log[part]["log"]]
        assert all(map(math.isfinite, curve))
        assert curve[-1] < 0.7 * curve[0]
    figures = log["transformer"]["figures"]
    assert figures["heldout_loss"] < figures["heldout_loss_others_captions"] < figures["heldout_loss_fresh"]


def test_the_config_is_the_preset_tiny():
    shipped = dict(load.empty_transformer(ASSETS / "transformer").config)
    preset = dict(STDiT2.preset("tiny").config)

    for name in preset.keys() - {"_name_or_path", "_use_default_values"}:
        found, wanted = shipped[name], preset[name]
        assert (list(found) == list(wanted)) if isinstance(wanted, tuple) else found == wanted, name
