import json
import shutil

import pytest
import torch

import tiny
from brickreel import config
from brickreel.models import folder, load
from brickreel.models.pipeline import OpenSoraPipeline


@pytest.fixture
def base(tmp_path):
    """A base whose text encoder is in T5's old layout: one folder, with sentencepiece's vocabulary."""
    stored = tiny.save_base(tmp_path / "base")
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.move(stored / "tokenizer" / name, stored / "text_encoder" / name)
    (stored / "text_encoder" / "special_tokens_map.json").write_text("{}")
    shutil.rmtree(stored / "tokenizer")
    return config.load({"base": tiny.base_settings(stored)}).base


def test_a_text_encoder_of_the_old_layout_is_written_with_its_words(base, tmp_path):
    folder.write(tmp_path / "out", load.transformer(base.transformer.path), base, "iddpm", {})
    encoder = {path.name for path in (tmp_path / "out" / "text_encoder").iterdir()}
    assert encoder == {"config.json", "model.safetensors"}
    wanted = load.text_encoder(base.text_encoder.path).encode(["a red car"])[0]
    pipeline = OpenSoraPipeline.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(pipeline.encode_prompt("a red car")[0, 0], wanted)
    assert torch.equal(load.text_encoder(str(tmp_path / "out" / "text_encoder")).encode(["a red car"])[0], wanted)


def test_the_pipelines_tokenizer_is_the_one_in_its_own_folder(base, tmp_path):
    """Earlier exports have a tokenizer's settings, without its words, beside the encoder as well."""
    out = tmp_path / "out"
    folder.write(out, load.transformer(base.transformer.path), base, "iddpm", {})
    (out / "text_encoder" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    pipeline = OpenSoraPipeline.from_pretrained(out)
    assert len(pipeline.tokenizer) == len(load.tokenizer(tmp_path / "base" / "text_encoder"))
    (out / "tokenizer" / "tokenizer.json").rename(out / "text_encoder" / "tokenizer.json")
    with pytest.raises(FileNotFoundError, match=r"tokenizer has no tokenizer\.json or spiece\.model"):
        OpenSoraPipeline.from_pretrained(out)
