"""What the cards of an exported model say."""

from brickreel.evaluation import cards


def reading(step, relative, weights="ema", attempt=0):
    return {"attempt": attempt, "step": step, "weights": weights, "relative": relative, "clips": 3}


def test_the_held_out_loss_is_that_of_the_last_reading_relative_to_step_0():
    rows = [reading(0, 1.0), reading(10, 0.8), reading(20, 0.5), reading(20, 0.7), reading(30, 0.1, "raw")]
    assert cards.gauge_of(rows, "ema", 30) == {"step": 20, "relative": 0.6, "clips": 3}
    assert cards.gauge_of(rows[:1], "ema", 30)["step"] == 0
    assert cards.gauge_of([], "ema", 30) is None


def test_where_no_later_reading_has_its_relation_that_of_step_0_is_not_the_last():
    assert cards.gauge_of([reading(0, 1.0), reading(10, None)], "ema", 30) is None
    assert cards.gauge_of([reading(0, 1.0), reading(10, 0.9), reading(20, None)], "ema", 30)["step"] == 10


def test_a_step_that_was_read_again_has_its_newest_reading_and_none_is_beyond_the_final_step():
    rows = [reading(20, 0.9), reading(20, 0.7), reading(30, 0.1), reading(20, 0.5, attempt=1)]
    assert cards.gauge_of(rows, "ema", 20) == {"step": 20, "relative": 0.5, "clips": 3}


def test_a_reading_of_a_training_that_was_started_anew_is_not_the_models():
    first = [reading(0, 1.0), reading(10, 0.4)]
    anew = [reading(0, 1.0, attempt=3), reading(5, None, attempt=3)]
    assert cards.gauge_of([*first, *anew], "ema", 20) is None
    assert cards.gauge_of([*first, *anew, reading(8, 0.8, attempt=4)], "ema", 20)["relative"] == 0.8


def test_scores_of_a_step_beyond_the_final_one_are_not_the_models():
    metric = {"name": "drift", "weights": "ema", "conditional": True, "length": 1, "low": None}
    rows = [metric | {"step": step, "value": step / 10} for step in (2, 4, 6)]
    (shown,) = cards.scores_of({"metrics": rows}, "ema", 4)
    assert (shown["model"], shown["value"]) == ("after 4 steps", "0.4")


def test_the_model_card_has_each_metric_once_at_the_trained_length():
    rows = [
        {"name": "drift", "weights": "ema", "step": 4, "conditional": True, "length": length, "value": length / 10}
        for length in (1, 2, 4)
    ]
    (shown,) = cards.scores_of({"metrics": [row | {"low": None} for row in rows]}, "ema", 4)
    assert float(shown["value"]) == 0.1


def test_addresses_of_films_are_links_as_they_stand():
    film = {"film_id": "f", "split": "train", "clips": 1, "stills": 0, "count": 1, "kind": "clip"}
    film |= dict.fromkeys(cards.PROVENANCE)
    films = [
        film | {"url": url} for url in ("https://youtu.be/a_b_c?x=1&y=2", "javascript:x_y", "https://a.b/|<b>", None)
    ]
    card = cards._render(
        "dataset_card.md.j2", name="n", run="r", films=films, licences=[], captioners=[], present="f", remarks=[]
    )
    assert "| <https://youtu.be/a_b_c?x=1&y=2> |" in card
    assert "| javascript:x\\_y |" in card
    assert "<b>" not in card
    assert card.count("\n| f |") == 4
