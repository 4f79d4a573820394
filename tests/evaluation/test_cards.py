"""What the cards of an exported model say."""

from brickreel.evaluation import cards


def reading(step, relative, weights="ema"):
    return {"step": step, "weights": weights, "relative": relative, "clips": 3}


def test_the_held_out_loss_is_that_of_the_last_reading_relative_to_step_0():
    rows = [reading(0, 1.0), reading(10, 0.8), reading(20, 0.5), reading(20, 0.7), reading(30, 0.1, "raw")]
    assert cards.gauge_of(rows, "ema") == {"step": 20, "relative": 0.6, "clips": 3}
    assert cards.gauge_of(rows[:1], "ema")["step"] == 0
    assert cards.gauge_of([], "ema") is None


def test_where_no_later_reading_has_its_relation_that_of_step_0_is_not_the_last():
    assert cards.gauge_of([reading(0, 1.0), reading(10, None)], "ema") is None
    assert cards.gauge_of([reading(0, 1.0), reading(10, 0.9), reading(20, None)], "ema")["step"] == 10
