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
    r"\b(i'm sorry|i am sorry|i(?: can(?:no|')t| could(?: no|n')t|'m not able to| am not able to|'m unable| am unable)|"
    r"as an ai\b|(?:not enough|insufficient) information"
    r"|(?:there (?:is|was)|provided) (?:not enough|insufficient) (?:detail|context))",
    re.I,
)
# The pictures that the captioner was given, not one that hangs on a wall of the scene.
_SHOWN = re.compile(
    r"\b(?:(?:first|second|third|fourth|fifth|last|final|next|previous|these|both|all|each|every|this) pictures?"
    r"|(?:in|across|throughout|over|between) the pictures?"
    r"|the pictures? (?:shows?|depicts?|captures?|features?|illustrates?))\b"
    r"(?!\s+(?:on|above|behind|hang\w*|fall\w*|book|frame))",
    re.I,
)
# Dashes and apostrophes that look like those of a keyboard, and characters that do not show at all.
_PLAIN = str.maketrans(dict.fromkeys("‐‑‒–—―−", "-") | dict.fromkeys("‘’ʼ′", "'") | dict.fromkeys("\u00ad\u200b", ""))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Frequent words of English captions that other languages do not have, and those that some of them share.
_ENGLISH = _words(
    """
    the and are with by from its it their his her while into onto past across along through toward towards between
    behind beside near next above below around away back forward slowly quickly then there that this which two
    three four several small tall short left right red blue green yellow white black brown grey gray pink purple
    light dark bright figure person people tree house street road wall ground floor background car truck horse dog
    walks moves turns stands runs drives rolls falls jumps rides holds lifts walking moving standing
    """
)
_SHARED = _words("a an as is in on of to at over under large man")
# Frequent words of Dutch, German, French, Spanish, Italian, Portuguese, the Nordic languages and Polish.
_FOREIGN = _words(
    """
    de het een en naar wordt zijn staat loopt aan niet achter tussen voor rode groene blauwe der das ein eine
    einen einem einer und ist sind mit auf dem nach im zum zur vom ins sich steht geht neben hinter vor rote roter
    grüne le la les un une du des et est sont dans avec sur vers au aux qui il elle rouge vert bleu el los las una
    y con del por hacia al se su roja rojo verde azul lo gli di che da della nel nella sul sulla verso si rosso
    rossa cammina uma um com na em ao vermelho vermelha och ett på med är till som det av og er går się jest przed
    w z
    """
)
_LEAST_ENGLISH_SHARE = 0.08
_MOST_FOREIGN_LETTERS = 0.15
# Things, not pictures, by what stands before or after a word that is banned: a window frame, a bicycle with a red
# frame, the frame of the door, a frame-like tower.
_FRAMED = r"\b(?:window|door|doorway|gate|picture|mirror|bed|bike|bicycle|climbing|wooden|metal)s?"
_COLOUR = r"(?:red|green|blue|yellow|white|black|orange|brown|gr[ae]y|pink|purple|golden|silver)"
_THINGS = {
    "frame": (
        re.compile(rf"{_FRAMED}[\s-]+(?:with\s+(?:(?:an?|its|the)\s+)?)?(?:{_COLOUR}\s+)?$", re.I),
        re.compile(rf"-like\b|\s+of\s+(?:an?|its|the)\s+(?:\w+\s+)?{_FRAMED}\b", re.I),
    ),
    "clip": (re.compile(r"\b(?:paper|hair|binder)[\s-]+$", re.I), re.compile(r"-like\b", re.I)),
}
# A tree frames the house; but in both frames the figure stands.
_SEVERAL = re.compile(r"\b(?:the|these|those|both|all|two|three|four|few|some|several|in|of|between|across)\s+$", re.I)
# Text that shrinks to less than this share of its length when compressed repeats itself.
_LEAST_COMPRESSED_SHARE, _COMPRESSED_FROM_WORDS = 0.35, 30
_MOST_RUN = 4  # the same word, or the same sentence, this often in a row or in all


def problem(answer: Answer, settings: Caption) -> str:
    """Why the caption of an answer cannot be used; empty when it can."""
    return text_problem(answer.caption, settings)


def text_problem(text: str, settings: Caption) -> str:
    """Why a text cannot be used as a caption; empty when it can."""
    text = _plain(text)
    words = re.findall(r"\w+(?:['-]\w+)*", text.lower())
    checks: tuple[Callable[[], str], ...] = (
        lambda: sentinel(text),
        lambda: _refusal(text),
        lambda: _length(words, settings),
        lambda: _language(text, words),
        lambda: _repetition(text, words),
        lambda: _shown(text),
        lambda: banned(text, settings.banned_words),
    )
    return next((reason for check in checks if (reason := check())), "")


def _plain(text: str) -> str:
    return text.translate(_PLAIN)


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
    english, others = sum(word in _ENGLISH for word in words), sum(word in _FOREIGN for word in words)
    common = english + (0 if others > english else sum(word in _SHARED for word in words))
    if foreign > _MOST_FOREIGN_LETTERS * len(letters) or others > english or common < _LEAST_ENGLISH_SHARE * len(words):
        return "not English"
    return ""


def _repetition(text: str, words: list[str]) -> str:
    runs = any(len(set(words[i : i + _MOST_RUN])) == 1 for i in range(len(words) - _MOST_RUN + 1))
    sentences = [s.strip().lower() for s in re.split(r"[.!?]+", text) if s.strip()]
    repeated = len(sentences) - len(set(sentences)) >= 2
    data = text.encode()
    compressed = len(words) >= _COMPRESSED_FROM_WORDS and len(zlib.compress(data)) < _LEAST_COMPRESSED_SHARE * len(data)
    return "repeats itself" if runs or repeated or compressed else ""


def _shown(text: str) -> str:
    found = _SHOWN.search(text)
    return f"speaks of the pictures: '{found[0].lower()}'" if found else ""


@cache
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    # Spaces in a banned phrase also stand for hyphens and for nothing: "stop motion", "stop-motion", "stopmotion".
    parts = (re.sub(r"(\\ |\\-)+", r"[\\s-]*", re.escape(_plain(word))).replace("'", "'?") for word in words)
    # A word may end in a sign, where there is no border of a word: LEGO®.
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?:s|es|'s)?(?!\w)", re.I)


def banned(text: str, words: tuple[str, ...]) -> str:
    """A reason that names the banned words in a text; empty without any."""
    text = _plain(text)
    found = sorted({m[0].lower() for m in _pattern(words).finditer(text) if not _is_thing(text, m)}) if words else []
    return f"banned words: {', '.join(found)}" if found else ""


def _is_thing(text: str, found: re.Match[str]) -> bool:
    before, word, after = text[: found.start()], found[0].lower(), text[found.end() :]
    if word == "frames" and re.match(r"\s+the\b", after, re.I):
        return not _SEVERAL.search(before)
    things = _THINGS.get(word.removesuffix("s"))
    return things is not None and bool(things[0].search(before) or things[1].match(after))
