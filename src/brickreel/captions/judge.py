"""From the rows of the ledger to the end of a clip: a pure function, so stored answers are judged anew for free."""

from collections.abc import Mapping, Sequence
from typing import Any

from brickreel.captions import checks, client
from brickreel.captions.answer import VERDICTS, Answer
from brickreel.captions.items import Caption
from brickreel.config import Caption as Settings

MOST_ANSWERS = 3
"""Unusable answers (banned words, refusals, cut or repetitive texts) after which a clip is dropped; it has failed when
the last one did not follow the schema. In all runs together: each was paid for."""


def judge(rows: Sequence[Mapping[str, Any]], settings: Settings) -> tuple[Caption | None, str]:
    """The caption that the requests so far amount to; None with the reason to ask again (empty: never answered)."""
    unusable: list[tuple[str, str]] = []
    for row in reversed(rows):
        if row["answer"] is None:
            problem = row["reason"] if _unusable(row, settings) else ""
        else:
            answer = Answer.model_validate_json(row["answer"])
            if answer.outcome != "described" and answer.outcome in VERDICTS[row["kind"]]:
                return _ended("dropped", answer.outcome, rows, row), ""
            problem = checks.problem(answer, settings)
            if not problem:
                return _ended("ok", "", rows, row, answer), ""
        if problem:
            unusable.append(("failed" if row["outcome"] == "failed" else "dropped", problem))
    outcome, reason = unusable[0] if unusable else ("", "")
    if len(unusable) >= MOST_ANSWERS:
        return _ended(outcome, reason, rows, rows[-1]), ""
    return None, reason


def _unusable(row: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a row without an answer tells of one that was paid for, or of a refusal."""
    if row["reason"] == client.CUT:
        # A larger max_tokens may be enough.
        return (row.get("max_tokens") or settings.max_tokens) >= settings.max_tokens
    return row["outcome"] == "dropped" or row["billed"] == "reported" or row["reason"] == client.NO_SCHEMA


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
