"""Contact sheets: pictures in a labelled grid, for people to look at."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from brickreel import files

Picture = NDArray[np.uint8]

PAPER, INK, FAINT, CELL = (250, 249, 246), (28, 30, 34), (112, 116, 124), (232, 230, 224)
MARGIN, GAP, TEXT, LABEL_WIDTH = 28, 8, 15, 210
# Small pictures are enlarged to at least this many rows, so that a 64-pixel model can be judged by eye.
CELL_HEIGHT = 132
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
    if len(rows) > MOST_ROWS:
        subtitle = f"{subtitle} · " * bool(subtitle) + f"the first {MOST_ROWS} of {len(rows):,} rows"
        rows, row_labels = rows[:MOST_ROWS], row_labels[:MOST_ROWS]
    if len(column_labels) > MOST_COLUMNS:
        shown = np.linspace(0, len(column_labels) - 1, MOST_COLUMNS).round().astype(int)
        rows, column_labels = [[row[index] for index in shown] for row in rows], [column_labels[i] for i in shown]
    present = [picture for row in rows for picture in row if picture is not None]
    if not present:
        raise ValueError("there are no pictures to put on a contact sheet")
    height = max(CELL_HEIGHT, min(max(picture.shape[0] for picture in present), 240))
    width = round(max(height * picture.shape[1] / picture.shape[0] for picture in present))
    top = MARGIN + 34 + (22 if subtitle else 0) + 26
    size = (
        2 * MARGIN + LABEL_WIDTH + len(column_labels) * (width + GAP),
        top + len(rows) * (height + GAP) + MARGIN,
    )
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    font, bold = ImageFont.load_default(TEXT), ImageFont.load_default(24)
    draw.text((MARGIN, MARGIN - 4), _fit(draw, title, bold, size[0] - 2 * MARGIN), INK, bold)
    if subtitle:
        draw.text((MARGIN, MARGIN + 30), _fit(draw, subtitle, font, size[0] - 2 * MARGIN), FAINT, font)
    for column, label in enumerate(column_labels):
        left = MARGIN + LABEL_WIDTH + column * (width + GAP)
        text = _fit(draw, label, font, width)
        draw.text((left + (width - draw.textlength(text, font)) / 2, top - 24), text, FAINT, font)
    for index, row in enumerate(rows):
        upper = top + index * (height + GAP)
        lines = wrap(row_labels[index].replace("\n", " "), 26)[: height // 20]
        if len(" ".join(lines)) < len(" ".join(row_labels[index].split())):
            lines[-1] = lines[-1][:24].rstrip() + "…"
        draw.multiline_text((MARGIN, upper + 2), "\n".join(lines), INK, font, spacing=4)
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


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    text = " ".join(text.split())
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def spread(video: NDArray[np.uint8], count: int) -> list[Picture]:
    """`count` poses spread evenly over a video, its first and last among them."""
    return [video[index] for index in np.linspace(0, len(video) - 1, count).round().astype(int)]
