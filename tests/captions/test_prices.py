import pytest

from brickreel.captions import prices
from brickreel.config import Caption


def test_listed_model_has_its_listed_price_also_under_a_dated_name():
    for model in ("gpt-4o", "gpt-4o-2024-08-06"):
        price = prices.price(Caption(model=model))
        assert price.usd(1_000_000, 0) == pytest.approx(2.50)
        assert price.usd(0, 1_000_000) == pytest.approx(10.00)
        assert price.picture_tokens == 85


def test_batch_costs_half():
    one, batch = prices.price(Caption()), prices.price(Caption(batch=True))
    assert batch.usd(1000, 100) == pytest.approx(one.usd(1000, 100) / 2)


@pytest.mark.parametrize("batch", [False, True])
def test_settings_win_over_the_list_and_say_what_is_charged(batch):
    price = prices.price(Caption(usd_per_million_in=1, usd_per_million_out=2, batch=batch))
    assert price.usd(1_000_000, 1_000_000) == pytest.approx(3)


def test_list_is_openais_and_says_nothing_of_other_endpoints():
    with pytest.raises(ValueError, match="usd_per_million_in"):
        prices.price(Caption(base_url="http://example.test/v1"))
    with pytest.raises(ValueError, match="price of the model 'new-model'"):
        prices.price(Caption(model="new-model"))


def test_server_of_ones_own_costs_nothing():
    price = prices.price(Caption(model="mine", server={"command": ["serve", "{port}"]}))
    assert price.usd(10**9, 10**9) == 0


def test_detail_high_costs_a_tile_for_each_512_pixels():
    def tokens(side):
        return prices.price(Caption(detail="high", image_side=side)).picture_tokens

    assert (tokens(512), tokens(513), tokens(1024)) == (85 + 170, 85 + 4 * 170, 85 + 4 * 170)


def test_upper_bound_is_above_what_is_expected():
    price = prices.price(Caption())
    assert price.most_in(1000, 3) > price.expected(1000, 3)[0]
    assert not prices.price(Caption(model="x", usd_per_million_in=1, usd_per_million_out=1)).exact_pictures


def test_pictures_of_an_unknown_model_are_reserved_for_by_their_size():
    def tokens(side):
        settings = Caption(model="x", usd_per_million_in=1, usd_per_million_out=1, image_side=side)
        return prices.price(settings).picture_tokens

    assert tokens(512) == 3000
    assert tokens(2048) >= (2048 / 14) ** 2
