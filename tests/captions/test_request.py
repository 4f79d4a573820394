import pytest

from brickreel.captions import prompts
from brickreel.captions import request as requests
from brickreel.captions.answer import Answer
from brickreel.captions.items import Item
from brickreel.captions.ledger import Ledger
from brickreel.captions.prices import price
from brickreel.config import Caption


def item(kind="clip", **other):
    given = {"clip_id": "a", "kind": kind, "path": "x.mp4", "frames": 30, "holds": (), "in_poses": False}
    given |= {"fps": 24.0, "pose_rate": 12.0, "content_hash": "h"}
    return Item(**given | other)


def test_prompt_says_material_rate_number_of_pictures_and_banned_words():
    assert "given 1 picture of" in prompts.render("clip", "clay", 1, 12.5, ())
    text = prompts.render("clip", "clay", 4, 12.5, ("video", "frame"))
    for words in ("clay", "4 pictures", "12.5 poses per second", "video, frame"):
        assert words in text
    still = prompts.render("still", "clay", 1, 12.5, ("video",))
    assert "one picture" in still
    assert "poses per second" not in still
    assert "too long" in prompts.again("too long")


def test_every_prompt_asks_for_one_object_with_all_fields():
    for kind in prompts.VERSIONS:
        text = prompts.render(kind, "clay", 3, 12, ())
        assert "one JSON object" in text
        assert all(f"`{name}`" in text for name in Answer.model_fields)


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


def test_rate_of_the_poses_is_in_the_key_of_a_clip_alone():
    for kind, differs in (("clip", True), ("still", False)):
        one, other = (requests.request(item(kind, pose_rate=rate), Caption()) for rate in (12.0, 8.0))
        assert (one.key != other.key) is differs


@pytest.mark.parametrize(("clip", "frames"), [({"frames": 2}, (0, 1)), ({"frames": 12, "holds": (6, 6)}, (3, 9))])
def test_clip_with_fewer_poses_than_pictures_shows_each_once_and_says_how_many(clip, frames):
    request = requests.request(item(**clip), Caption(frames=5))
    assert (request.frames, request.pictures) == (frames, 2)
    assert "given 2 pictures of" in request.prompt


def test_clip_without_frames_fails_alone():
    request = requests.request(item(frames=0), Caption())
    with pytest.raises(ValueError, match="no frames"):
        requests.jpegs(request, Caption())


def test_tokens_of_other_pictures_say_nothing_of_these(tmp_path):
    settings = Caption()
    request, money = requests.request(item(), settings), price(settings)
    ledger = Ledger(tmp_path, "0/1", 1.0)
    ledger.seen_tokens["gpt-4o", request.version, "3 x 512 low"] = [10, 5_000, 1000, 900]
    for change in ({"frames": 8}, {"detail": "high"}, {"image_side": 1024}):
        changed = Caption(**change)
        expected = requests.expected_tokens(requests.request(item(), changed), changed, money, ledger)
        assert expected != (500, 100)
    assert requests.expected_tokens(request, settings, money, ledger) == (500, 100)


def test_most_is_above_what_is_expected_and_follows_the_answers_seen(tmp_path):
    settings = Caption()
    request, money = requests.request(item(), settings), price(settings)
    ledger = Ledger(tmp_path, "0/1", 1.0)
    before = requests.most_usd(request, settings, money, ledger)
    assert before > money.usd(*requests.expected_tokens(request, settings, money, ledger))
    ledger.seen_tokens["gpt-4o", request.version, request.sent] = [10, 50_000, 1000, 9000]
    assert requests.expected_tokens(request, settings, money, ledger) == (5000, 100)
    assert requests.most_usd(request, settings, money, ledger) >= money.usd(9000, settings.max_tokens) > before
