"""From the rows of the ledger to the end of a clip: a pure function, so stored answers are judged anew for free."""

from collections.abc import Mapping, Sequence
from typing import Any

from brickreel.captions import checks
from brickreel.captions.answer import Answer
from brickreel.captions.items import Caption
from brickreel.config import Caption as Settings

MOST_ANSWERS = 3
"""Unusable answers (banned words, refusals, cut or repetitive texts) after which a clip is dropped."""


def judge(rows: Sequence[Mapping[str, Any]], settings: Settings) -> tuple[Caption | None, str]:
    """The caption that the requests so far amount to; None with the reason to ask again (empty: never answered)."""
    reason, unusable = "", 0
    for row in reversed(rows):
        if row["answer"] is None:
            if row["outcome"] == "dropped":
                unusable, reason = unusable + 1, reason or row["reason"]
            continue
        answer = Answer.model_validate_json(row["answer"])
        if answer.outcome != "described":
            return _ended("dropped", answer.outcome, rows, row), ""
        problem = checks.problem(answer, settings)
        if not problem:
            return _ended("ok", "", rows, row, answer), ""
        unusable, reason = unusable + 1, reason or problem
    if unusable >= MOST_ANSWERS:
        return _ended("dropped", reason, rows, rows[-1]), ""
    return None, reason


def failed(reason: str, rows: Sequence[Mapping[str, Any]] = ()) -> Caption:
    """The end of a clip for which no answer came; what its requests cost is kept."""
    return _ended("failed", reason, rows, rows[-1] if rows else {})


def _ended(
    outcome: str,
    reason: str,
    rows: Sequence[Mapping[str, Any]],
    row: Mapping[str, Any],
    answer: Answer | None = None,
) -> Caption:
    return Caption(
        outcome,
        reason,
        answer,
        model=row.get("model"),
        prompt_version=row.get("prompt_version"),
        tokens_in=sum(each["tokens_in"] or 0 for each in rows),
        tokens_out=sum(each["tokens_out"] or 0 for each in rows),
        usd=sum(each["usd"] for each in rows),
    )
