"""`python -m brickreel.training.tiny` makes a folder that loads as a base model."""

import torch
from click.testing import CliRunner

from brickreel import files
from brickreel.models import load
from brickreel.training.tiny import text
from brickreel.training.tiny.__main__ import main
from brickreel.training.tiny.autoencoder import CHANNELS


def _make(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_all_parts_are_made_and_load_and_the_decoder_keeps_the_latents(tmp_path):
    out, work = tmp_path / "base", tmp_path / "work"
    where = ("--out", out, "--work", work)

    _make("autoencoder", *where, "--steps", 2, "--batch", 2, "--pictures", 4, "--unseen", 2)
    sizes = ("--batch", 2, "--stills-batch", 4, "--clips", 3, "--stills", 4, "--unseen", 2)
    _make("transformer", *where, "--steps", 2, "--stills-until", 1, *sizes)

    before = load.autoencoder(str(out / "autoencoder")).vae.state_dict()
    _make("decoder", *where, "--steps", 2, "--batch", 2, "--pictures", 4, "--unseen", 2)

    autoencoder = load.autoencoder(str(out / "autoencoder"))
    changed = {name for name, weight in autoencoder.vae.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
    encoder = load.text_encoder(str(out / "text_encoder"))
    transformer = load.transformer(str(out / "transformer"))
    assert (autoencoder.downsample, autoencoder.channels) == (8, CHANNELS)
    assert encoder.encode(["a red circle"])[0].shape == (4, text.CHANNELS)
    assert transformer.config.caption_channels == text.CHANNELS
    log = files.read_json(out / "log.json")
    assert log["autoencoder"]["command"].endswith(
        "autoencoder --steps 2 --batch 2 --lr 0.002 --pictures 4 --unseen 2 --seed 0"
    )
    assert {"heldout_loss", "heldout_loss_fresh"} <= log["transformer"]["figures"].keys()
    assert log["transformer"]["log"][-1]["step"] == 2


def test_every_word_of_a_caption_is_one_token(tmp_path):
    tokenizer = text.save_tokenizer(tmp_path, text.vocabulary(text.sample_captions(5, 0)))

    pieces = tokenizer.convert_ids_to_tokens(tokenizer("Two red subjects move apart. The light is soft.").input_ids)

    words = ["▁Two", "▁red", "▁subjects", "▁move", "▁apart", ".", "▁The", "▁light", "▁is", "▁soft", ".", "</s>"]
    assert pieces == words


def test_unknown_words_are_spelled(tmp_path):
    tokenizer = text.save_tokenizer(tmp_path, ["a", "red"])

    pieces = tokenizer.convert_ids_to_tokens(tokenizer("a zeppelin").input_ids)

    assert pieces == ["▁a", "▁", *"zeppelin", "</s>"]
