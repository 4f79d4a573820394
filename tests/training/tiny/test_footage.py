"""What the tiny model learns from follows from the seed alone, and the transformer's part holds no bricks."""

import sys

import numpy as np

from brickreel.captions import embedded
from brickreel.training.tiny import footage


def test_captioned_clips_are_a_pure_function_of_the_seed():
    first, again, other = (list(footage.captioned(3, 4, seed)) for seed in (5, 5, 6))

    for (clip, caption), (same, same_caption) in zip(first, again, strict=True):
        assert np.array_equal(clip.frames, same.frames)
        assert caption == same_caption
    assert not np.array_equal(first[0][0].frames, other[0][0].frames)


def test_most_captions_are_measured_and_some_are_the_generators_own():
    captions = [caption for _, caption in footage.captioned(24, 6, 0)]
    measured = [caption for caption in captions if "The light is" in caption]

    assert 24 > len(measured) > 12
    assert set(" ".join(measured).replace(".", " .").split()) <= set(embedded.vocabulary())


def test_the_transformers_footage_draws_no_bricks(monkeypatch):
    drawn = []
    monkeypatch.setattr(footage.Renderer, "picture", lambda *arguments: drawn.append(arguments))

    list(footage.captioned(2, 4, 0))

    assert not drawn
    assert "brickreel.films.demo" not in sys.modules["brickreel.films.shapes"].__dict__.values()
