"""Whether a text can stand as a caption. Each check gives a reason that a person and a model can act on."""

import re
import zlib
from collections.abc import Callable
from functools import cache

from brickreel.captions.answer import Answer
from brickreel.config import Caption

# Answers that are not captions, though they stand where one should: the origin trained on some of them.
SENTINELS = ("caption failed", "not enough information", "single image", "no movement", "n/a", "none", "error")

_REFUSAL = re.compile(
    r"\b(i'?m sorry|i am sorry|i can(?:no|')t (?:help|assist|describe|provide)|i am unable|i'm unable|as an ai\b)", re.I
)
# The most frequent words of English text: a caption of some length has several of them.
_ENGLISH = frozenset(
    ("a", "an", "the", "is", "are", "in", "on", "of", "and", "to", "with", "at", "by", "from", "its", "while")
)
_LEAST_ENGLISH_SHARE = 0.08
_MOST_FOREIGN_LETTERS = 0.15
# Text that shrinks to less than this share of its length when compressed repeats itself.
_LEAST_COMPRESSED_SHARE, _COMPRESSED_FROM_WORDS = 0.35, 30
_MOST_RUN = 4  # the same word, or the same sentence, this often in a row or in all


def problem(answer: Answer, settings: Caption) -> str:
    """Why the caption of an answer cannot be used; empty when it can."""
    return text_problem(answer.caption, settings)


def text_problem(text: str, settings: Caption) -> str:
    """Why a text cannot be used as a caption; empty when it can."""
    words = re.findall(r"\w+(?:['’-]\w+)*", text.lower())
    checks: tuple[Callable[[], str], ...] = (
        lambda: sentinel(text),
        lambda: _refusal(text),
        lambda: _length(words, settings),
        lambda: _language(text, words),
        lambda: _repetition(text, words),
        lambda: banned(text, settings.banned_words),
    )
    return next((reason for check in checks if (reason := check())), "")


def sentinel(text: str) -> str:
    """A reason when the text is empty or only says that there is no caption."""
    bare = text.strip().strip(".!\"' ").lower()
    return f"no caption: '{bare}'" if bare in SENTINELS else "" if bare else "no caption: empty text"


def _refusal(text: str) -> str:
    return "refusal in the text" if _REFUSAL.search(text) else ""


def _length(words: list[str], settings: Caption) -> str:
    if len(words) < settings.min_words:
        return f"too short: {len(words)} words, at least {settings.min_words} are needed"
    if len(words) > settings.max_words:
        return f"too long: {len(words)} words, at most {settings.max_words} are allowed"
    return ""


def _language(text: str, words: list[str]) -> str:
    letters = [c for c in text if c.isalpha()]
    foreign = sum(not c.isascii() for c in letters)
    common = sum(word in _ENGLISH for word in words)
    if foreign > _MOST_FOREIGN_LETTERS * len(letters) or common < _LEAST_ENGLISH_SHARE * len(words):
        return "not English"
    return ""


def _repetition(text: str, words: list[str]) -> str:
    runs = any(len(set(words[i : i + _MOST_RUN])) == 1 for i in range(len(words) - _MOST_RUN + 1))
    sentences = [s.strip().lower() for s in re.split(r"[.!?]+", text) if s.strip()]
    repeated = len(sentences) - len(set(sentences)) >= 2
    data = text.encode()
    compressed = len(words) >= _COMPRESSED_FROM_WORDS and len(zlib.compress(data)) < _LEAST_COMPRESSED_SHARE * len(data)
    return "repeats itself" if runs or repeated or compressed else ""


@cache
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    # Spaces in a banned phrase also stand for hyphens and for nothing: "stop motion", "stop-motion", "stopmotion".
    parts = (re.escape(word).replace(r"\ ", r"[\s-]*").replace("'", "['’]?") for word in words)
    return re.compile(rf"\b(?:{'|'.join(parts)})(?:s|es|['’]s)?\b", re.I)


def banned(text: str, words: tuple[str, ...]) -> str:
    """A reason that names the banned words in a text; empty without any."""
    found = sorted({match.lower() for match in _pattern(words).findall(text)}) if words else []
    return f"banned words: {', '.join(found)}" if found else ""
