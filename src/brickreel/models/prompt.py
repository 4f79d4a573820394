"""Prompts as Open-Sora 1.1 cleaned them before sampling, for whoever wants a released model's very own result.

The rules are those of DeepFloyd IF, by way of PixArt and of diffusers' pipelines for them. They were made for captions
off the web, and eat what a film's prompt may well need ("3x4 studs", "&", e-mail addresses, Chinese). Training saw
captions as they are, so that nothing here is applied unless it is asked for.
"""

import html
import re
import unicodedata
from html.parser import HTMLParser
from urllib.parse import unquote_plus

_SITE = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
_FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_BEFORE_TAGS = (
    ("<person>", "person"),
    (rf"\b(?:https?:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_SITE})", ""),
    (rf"\b(?:www:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_SITE})", ""),
)
_MARKS = (
    (r"@\w+\b", ""),
    # Strokes, kana extensions, enclosed and compatibility characters, hexagrams, ideographs: each block as a whole.
    (r"[\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff]+", ""),
    (
        r"[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32"
        r"\ufe58\ufe63\uff0d]+",
        "-",
    ),
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # addresses of the internet
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_FILES})", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_JOINTS = re.compile(r"[-_]")
_MOST_JOINTS = 3  # with more of them, this-is-a-file-name
_SHOP_TALK = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILES})(\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # the Latin and the Cyrillic letter, and the sign
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def clean_prompt(text: str) -> str:
    """The prompt as Open-Sora 1.1's inference gives it to the text encoder, which cleans it twice.

    One step is left out: where the original repairs text that was decoded wrongly, this only composes its characters.
    """
    return _cleaned(_cleaned(text))


def _cleaned(text: str) -> str:
    text = _replaced(unquote_plus(text).strip().lower(), _BEFORE_TAGS)
    reader = _Text()
    reader.feed(text)
    reader.close()
    text = _replaced("".join(reader.parts), _MARKS)
    if len(_JOINTS.findall(text)) > _MOST_JOINTS:
        text = _JOINTS.sub(" ", text)
    text = html.unescape(html.unescape(unicodedata.normalize("NFC", text))).strip()
    return _replaced(text, _SHOP_TALK).strip()


def _replaced(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


class _Text(HTMLParser):
    """What is left of a text without its tags."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        """Collect text between tags."""
        self.parts.append(data)
