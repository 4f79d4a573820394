import json

from brickreel.captions import client
from brickreel.captions.judge import MOST_ANSWERS, failed, judge
from brickreel.config import Caption

SETTINGS = Caption()
FIELDS = {"subjects": "", "action": "", "camera": "", "setting": "", "style": "", "confidence": 1.0}
GOOD = "A red figure walks over the green baseplate to the house."


def row(caption=None, verdict="described", outcome="ok", reason="", usd=0.5, kind="clip", billed="none", **other):
    answer = None if caption is None else json.dumps({"outcome": verdict, "caption": caption, **FIELDS})
    stored = {"answer": answer, "outcome": outcome, "reason": reason, "usd": usd, "model": "m", "tokens_in": 10}
    return stored | {"tokens_out": 2, "prompt_version": "clip-1", "kind": kind, "billed": billed} | other


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


def test_paid_answers_without_the_schema_count_over_all_runs_and_then_the_clip_has_failed():
    bad = row(outcome="failed", reason=client.NO_SCHEMA, billed="reported")
    assert judge([bad], SETTINGS) == (None, client.NO_SCHEMA)
    uncounted = row(outcome="failed", reason=client.NO_SCHEMA, billed="unknown")
    found, _ = judge([bad, uncounted, bad], SETTINGS)
    assert (found.outcome, found.reason) == ("failed", client.NO_SCHEMA)
    assert judge([row(outcome="failed", reason="no answer in time", billed="unknown")] * 5, SETTINGS) == (None, "")


def test_answers_cut_at_fewer_tokens_than_today_do_not_count():
    cut = row(outcome="dropped", reason=client.CUT, billed="reported", max_tokens=200)
    assert judge([cut] * MOST_ANSWERS, Caption(max_tokens=400)) == (None, "")
    assert judge([cut] * MOST_ANSWERS, Caption(max_tokens=200))[0].reason == client.CUT
    assert judge([cut] * MOST_ANSWERS, Caption(max_tokens=100))[0].reason == client.CUT


def test_still_cannot_be_without_movement():
    caption, hint = judge([row("", "no movement", kind="still")], SETTINGS)
    assert caption is None
    assert hint
    assert judge([row("", "not enough information", kind="still")], SETTINGS)[0].outcome == "dropped"
