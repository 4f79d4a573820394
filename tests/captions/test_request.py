import pytest

from brickreel.captions import prompts
from brickreel.captions import request as requests
from brickreel.captions.items import Item
from brickreel.captions.ledger import Ledger
from brickreel.captions.prices import price
from brickreel.config import Caption


def item(kind="clip", **other):
    given = {"clip_id": "a", "kind": kind, "path": "x.mp4", "frames": 30, "holds": (), "in_poses": False}
    given |= {"fps": 24.0, "pose_rate": 12.0, "content_hash": "h"}
    return Item(**given | other)


def test_prompt_says_material_rate_number_of_pictures_and_banned_words():
    text = prompts.render("clip", "clay", 4, 12.5, ("video", "frame"))
    for words in ("clay", "4 pictures", "12.5 poses per second", "video, frame"):
        assert words in text
    still = prompts.render("still", "clay", 1, 12.5, ("video",))
    assert "one picture" in still
    assert "poses per second" not in still
    assert "too long" in prompts.again("too long")


def test_every_prompt_in_use_has_its_file_and_every_word_is_filled_in():
    for kind, version in prompts.VERSIONS.items():
        assert version.startswith(kind)
        assert "$" not in prompts.render(kind, "clay", 3, 12, ())


@pytest.mark.parametrize(
    "change",
    [
        {"model": "m2"},
        {"material": "wool"},
        {"frames": 4},
        {"image_side": 256},
        {"jpeg_quality": 50},
        {"detail": "high"},
    ],
)
def test_what_the_endpoint_sees_is_in_the_key(change):
    assert requests.request(item(), Caption()).key != requests.request(item(), Caption(**change)).key


@pytest.mark.parametrize("change", [{"banned_words": ("x",)}, {"max_tokens": 9}, {"budget_usd": 1}, {"concurrency": 2}])
def test_what_it_does_not_see_is_not(change):
    assert requests.request(item(), Caption()).key == requests.request(item(), Caption(**change)).key


def test_key_follows_the_content_and_not_the_name():
    one, same = requests.request(item(), Caption()), requests.request(item(clip_id="b", path="y.mp4"), Caption())
    assert one.key == same.key
    assert requests.request(item(content_hash="h2"), Caption()).key != one.key
    assert requests.request(item("still"), Caption()).key != one.key


def test_most_is_above_what_is_expected_and_follows_the_answers_seen(tmp_path):
    settings = Caption()
    request, money = requests.request(item(), settings), price(settings)
    ledger = Ledger(tmp_path, "0/1", 1.0)
    before = requests.most_usd(request, settings, money, ledger)
    assert before > money.usd(*requests.expected_tokens(request, settings, money, ledger))
    ledger.seen_tokens["gpt-4o", "clip-1"] = [10, 50_000, 1000, 9000]
    assert requests.expected_tokens(request, settings, money, ledger) == (5000, 100)
    assert requests.most_usd(request, settings, money, ledger) >= money.usd(9000, settings.max_tokens) > before
