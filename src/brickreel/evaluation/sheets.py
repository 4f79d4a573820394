"""Contact sheets: pictures in a labelled grid, for people to look at."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from brickreel import files
from brickreel.films import video

Picture = NDArray[np.uint8]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
Item = TypeVar("Item")

PAPER, INK, FAINT, CELL = (250, 249, 246), (28, 30, 34), (112, 116, 124), (232, 230, 224)
MARGIN, GAP, TEXT, LABEL_WIDTH = 28, 8, 15, 210
# Small pictures are enlarged to at least this many rows, so that a 64-pixel model can be judged by eye.
CELL_HEIGHT, MOST_HEIGHT = 132, 240
# Pillow's own knows little more than ASCII; the others are looked for among the system's fonts.
FONTS = ("", "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "NotoSansArabic-Regular.ttf",
         "NotoSansDevanagari-Regular.ttf")  # fmt: skip
LABEL_LETTERS = 26
# As many as a person looks at and a browser shows; the sides of a JPEG end at 65,500 pixels.
MOST_ROWS, MOST_COLUMNS = 60, 24


def grid(
    path: str | Path,
    rows: Sequence[Sequence[Picture | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str,
    subtitle: str = "",
) -> None:
    """Write a JPEG with one row of pictures [H, W, 3] per label; a missing picture is an empty cell.

    Of more rows than MOST_ROWS the first are shown, of more columns than MOST_COLUMNS some, the first and last among
    them.

    Raises ValueError when labels and pictures do not match or there is no picture at all.
    """
    if len(rows) != len(row_labels) or any(len(row) != len(column_labels) for row in rows):
        raise ValueError("a contact sheet needs one label per row and per column")
    row_labels, subtitle = first_rows(row_labels, subtitle)
    rows, column_labels = [some_columns(row) for row in rows[:MOST_ROWS]], some_columns(column_labels)
    present = [picture for row in rows for picture in row if picture is not None]
    if not present:
        raise ValueError("there are no pictures to put on a contact sheet")
    height = max(CELL_HEIGHT, min(max(picture.shape[0] for picture in present), MOST_HEIGHT))
    width = round(max(height * picture.shape[1] / picture.shape[0] for picture in present))
    top = MARGIN + 34 + (22 if subtitle else 0) + 26
    size = (
        2 * MARGIN + LABEL_WIDTH + len(column_labels) * (width + GAP),
        top + len(rows) * (height + GAP) + MARGIN,
    )
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    font, bold = _font_for(subtitle, TEXT), _font_for(title, 24)
    draw.text((MARGIN, MARGIN - 4), _fit(draw, title, bold, size[0] - 2 * MARGIN), INK, bold)
    if subtitle:
        draw.text((MARGIN, MARGIN + 30), _fit(draw, subtitle, font, size[0] - 2 * MARGIN), FAINT, font)
    for column, label in enumerate(column_labels):
        left = MARGIN + LABEL_WIDTH + column * (width + GAP)
        text = _fit(draw, label, font, width)
        draw.text((left + (width - draw.textlength(text, font)) / 2, top - 24), text, FAINT, font)
    for index, row in enumerate(rows):
        upper = top + index * (height + GAP)
        label = " ".join(row_labels[index].split())
        written = _font_for(label, TEXT)
        letters = _letters(draw, label, written)
        lines = wrap(label, letters)[: height // 20]
        if len("".join(lines).replace(" ", "")) < len(label.replace(" ", "")):
            lines[-1] = lines[-1][: letters - 2].rstrip() + "…"
        draw.multiline_text((MARGIN, upper + 2), "\n".join(lines), INK, written, spacing=4)
        for column, picture in enumerate(row):
            left = MARGIN + LABEL_WIDTH + column * (width + GAP)
            draw.rectangle((left, upper, left + width - 1, upper + height - 1), CELL)
            if picture is not None:
                _paste(sheet, picture, (left, upper, width, height))
    with files.replacing(path) as temporary:
        sheet.save(temporary, "JPEG", quality=90)


def _paste(sheet: Image.Image, picture: Picture, box: tuple[int, int, int, int]) -> None:
    left, top, width, height = box
    scale = min(width / picture.shape[1], height / picture.shape[0])
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    image = Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.LANCZOS)
    sheet.paste(image, (left + (width - size[0]) // 2, top + (height - size[1]) // 2))


def _letters(draw: ImageDraw.ImageDraw, text: str, font: Font) -> int:
    """How many of its letters fit on a line of a label."""
    width = draw.textlength(text, font) / max(1, len(text))
    return min(LABEL_LETTERS, int((LABEL_WIDTH - GAP) / max(width, 1.0)))


def _fit(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> str:
    text = " ".join(text.split())
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def first_rows(items: Sequence[Item], subtitle: str = "") -> tuple[list[Item], str]:
    """As many as a sheet shows, and its subtitle, which tells where there are more.

    Chosen before any video is read: those of thousands of prompts fit into no memory.
    """
    if len(items) > MOST_ROWS:
        subtitle = f"{subtitle} · " * bool(subtitle) + f"the first {MOST_ROWS} of {len(items):,} rows"
    return list(items[:MOST_ROWS]), subtitle


def some_columns(items: Sequence[Item]) -> list[Item]:
    """As many as a sheet shows, the first and last among them."""
    count = min(len(items), MOST_COLUMNS)
    return [items[index] for index in spread(len(items), count)]


def spread(length: int, count: int) -> list[int]:
    """`count` places spread evenly over `length` ones, the first and last among them."""
    return np.linspace(0, length - 1, count).round().astype(int).tolist()


def pictures(path: str | Path, places: Sequence[int]) -> list[Picture]:
    """Frames of a video, no larger than a sheet shows them. Raises ValueError when they cannot be read."""
    return list(video.read(path, places, MOST_HEIGHT))


def readable(text: str, otherwise: str) -> str:
    """The text without letters that no font here has, for which boxes would be drawn; where those are most of it, the
    other text."""
    if _lacking_nothing(text, TEXT):
        return text
    fonts = [font for name in FONTS if (font := _font(name, TEXT))]
    best = max(("".join(letter for letter in text if _has(font, letter)) for font in fonts), key=len)
    return best if 2 * len(best.replace(" ", "")) > len(text.replace(" ", "")) else otherwise


def _font_for(text: str, size: int) -> Font:
    """The first font that has all letters of a text, or else the first."""
    return _lacking_nothing(text, size) or ImageFont.load_default(size)


def _lacking_nothing(text: str, size: int) -> Font | None:
    for name in FONTS:
        font = _font(name, size)
        if font and all(_has(font, letter) for letter in set(text)):
            return font
    return None


@cache
def _font(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None


def _has(font: Font, letter: str) -> bool:
    """Whether it draws something else than the box for what it lacks, which a letter that nobody has shows."""
    return letter.isspace() or _drawn(font, letter) != _drawn(font, "\U0010ffff")


@cache
def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)
