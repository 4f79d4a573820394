from brickreel.captions.endpoint import forecast


def row(shard, usd, answered=0.0, model="m"):
    return {"shard": shard, "usd": usd, "usd_answered": answered, "model": model}


def test_forecast_is_the_sum_of_what_each_shard_first_expected():
    assert forecast([]) == 0
    assert forecast([row("00/2", 3.0), row("01/2", 4.0)]) == 7
    # Later runs expect less, since most is answered already.
    assert forecast([row("00/2", 3.0), row("01/2", 4.0), row("00/2", 0.5, 2.0)]) == 7


def test_forecast_starts_anew_with_another_model_or_division():
    assert forecast([row("00/1", 3.0), row("00/1", 5.0, model="other")]) == 5
    assert forecast([row("00/1", 3.0), row("00/2", 1.0, 0.5), row("01/2", 1.0, 0.5)]) == 3
