import pytest

from brickreel.config import Run
from brickreel.training import cautions

AVERAGED = {"ema_decay": 0.99, "max_steps": 1000}


@pytest.mark.parametrize(
    ("micro_batches", "ranks", "words"),
    [
        (8, 1, ""),
        (8, 4, ""),
        (8, 32, "leave 24 of 32 turns to padding: 8 ranks are as fast, the other 24 are paid for nothing"),
        (32, 24, "leave 16 of 48 turns to padding: 16 ranks are as fast, the other 8"),
        (3, 2, "leave 1 of 4 turns to padding"),
    ],
)
def test_ranks_that_compute_padding_are_counted(micro_batches, ranks, words):
    found = cautions.of(Run(micro_batches=micro_batches, **AVERAGED), ranks)
    assert len(found) == bool(words)
    assert words in "".join(found)


@pytest.mark.parametrize(
    ("decay", "steps", "left", "advice"),
    [(0.9999, 2000, 82, 0.9977), (0.99999, 100_000, 37, 0.999954), (0.9, 1, 90, 0.01)],
)
def test_a_moving_average_that_is_mostly_the_base_model_is_told_with_a_remedy(decay, steps, left, advice):
    (sentence,) = cautions.of(Run(ema_decay=decay, max_steps=steps), 1)
    assert f"leaves {left} % of the base model" in sentence
    assert f"ema_decay: {advice} would leave 1 %" in sentence
    assert advice**steps == pytest.approx(0.01, rel=0.05)
    assert cautions.of(Run(ema_decay=advice, max_steps=steps), 1) == []
