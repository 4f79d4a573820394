import json

from brickreel.captions.judge import MOST_ANSWERS, failed, judge
from brickreel.config import Caption

SETTINGS = Caption()
FIELDS = {"subjects": "", "action": "", "camera": "", "setting": "", "style": "", "confidence": 1.0}
GOOD = "A red figure walks over the green baseplate to the house."


def row(caption=None, verdict="described", outcome="ok", reason="", usd=0.5):
    answer = None if caption is None else json.dumps({"outcome": verdict, "caption": caption, **FIELDS})
    stored = {"answer": answer, "outcome": outcome, "reason": reason, "usd": usd, "model": "m", "tokens_in": 10}
    return stored | {"tokens_out": 2, "prompt_version": "clip-1"}


def test_nothing_asked_yet_asks_without_a_hint():
    assert judge([], SETTINGS) == (None, "")


def test_good_answer_ends_the_clip_with_all_that_it_cost():
    found, _ = judge([row(outcome="failed", reason="status 500", usd=0.0), row("A video."), row(GOOD)], SETTINGS)
    assert (found.outcome, found.answer.caption) == ("ok", GOOD)
    assert (found.usd, found.tokens_in, found.tokens_out) == (1.0, 30, 6)


def test_unusable_answer_asks_again_with_its_reason():
    caption, hint = judge([row("A video of a figure that walks to a house.")], SETTINGS)
    assert caption is None
    assert hint == "banned words: video"
    assert judge([row(outcome="dropped", reason="refusal: no")], SETTINGS) == (None, "refusal: no")


def test_clip_is_dropped_after_so_many_unusable_answers_and_failures_do_not_count():
    bad = row("A video of a figure that walks to a house.")
    error = row(outcome="failed", reason="status 500")
    assert judge([bad, error, bad, error, error], SETTINGS)[0] is None
    found, _ = judge([bad, error, *[bad] * (MOST_ANSWERS - 1)], SETTINGS)
    assert (found.outcome, found.reason, found.answer) == ("dropped", "banned words: video", None)


def test_verdicts_without_a_description_drop_the_clip_at_once():
    for verdict in ("not enough information", "single image", "no movement"):
        found, _ = judge([row("", verdict)], SETTINGS)
        assert (found.outcome, found.reason) == ("dropped", verdict)


def test_stored_answers_are_judged_by_the_settings_of_today():
    rows = [row(GOOD)]
    assert judge(rows, Caption(banned_words=("figure",)))[1] == "banned words: figure"
    assert judge(rows, SETTINGS)[0].outcome == "ok"


def test_failure_keeps_what_was_paid():
    found = failed("the end", [row(usd=0.25), row(usd=0.5)])
    assert (found.outcome, found.reason, found.usd) == ("failed", "the end", 0.75)
