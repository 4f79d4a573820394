"""Charts as SVG, made here and complete without JavaScript: each with a title, a description and text in real text.

Colours are the page's CSS variables, so that a chart follows light and dark; lines differ by dash as well as by colour.
Every element is made by `tag`, which escapes all that it is given.
"""

import base64
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

Values = Sequence[float | None]
Place = Callable[[float], float]

# Okabe and Ito's colours (as CSS variables), and a dash for each.
STYLES = (
    ("var(--s1)", None),
    ("var(--s2)", "7 4"),
    ("var(--s3)", "2 3"),
    ("var(--s4)", "10 3 2 3"),
    ("var(--s5)", "1 2"),
    ("var(--s6)", "12 4"),
)
WIDTH, HEIGHT = 720.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 74.0, 14.0, 12.0, 48.0
WIDE, TALL = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
MOST_DOTS = 12
"""A line of so few points shows each of them."""

# cividis at ten equal steps: perceptually even, and the same to colour-blind readers.
CIVIDIS = (
    (0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115),
    (138, 134, 120), (165, 156, 116), (195, 179, 105), (225, 204, 85), (254, 232, 56),
)  # fmt: skip

_ids = count(1)


@dataclass
class Line:
    """One line of a chart, with an optional band."""

    name: str
    y: Values
    low: Values | None = None
    high: Values | None = None
    style: int = 0


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element. Texts and attribute values are escaped; attributes that are None are left out.

    Names are written as in Python: `class_`, `text_anchor`. Numbers keep two decimals.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(escape(child) for child in children)
    return Markup(f"<{name}{written}>{inner}</{name}>")  # noqa: S704 - every part of it is escaped above


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def chart(title: str, description: str, width: float, height: float, *children: object) -> Markup:
    """A chart that screen readers announce, with its title and description."""
    number = next(_ids)
    return tag(
        "svg",
        tag("title", title, id=f"t{number}"),
        tag("desc", description, id=f"d{number}"),
        *children,
        role="img",
        viewBox=f"0 0 {width:g} {height:g}",
        aria_labelledby=f"t{number} d{number}",
        class_="chart",
    )


def words(text: object, x: float, y: float, kind: str = "tick", anchor: str = "middle") -> Markup:
    """A text in a chart."""
    return tag("text", text, class_=kind, x=x, y=y, text_anchor=anchor)


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that cover a range, about as many as wanted."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick's number, short."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.6g}"


def _range(lines: Sequence[Line], floor: float | None) -> tuple[float, float]:
    values = [v for line in lines for part in (line.y, line.low or (), line.high or ()) for v in part if v is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low = min(low, floor) if floor is not None else low
    if high <= low:
        high = low + (abs(low) * 0.1 or 1.0)
    return low, high


def line_chart(
    title: str,
    description: str,
    x: Sequence[float],
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    floor: float | None = None,
    ceiling: float | None = None,
    mark: float | None = None,
) -> Markup:
    """Lines over a common x, drawn with gaps where a value is None. `mark` draws one horizontal reference line.

    The same values stand beside the picture as JSON, for the script that adds hover and zoom.
    """
    low, high = _range(lines, floor)
    ticks = nice_ticks(low, max(high, ceiling) if ceiling is not None else high)
    low, high = ticks[0], ticks[-1] if len(ticks) > 1 else ticks[0] + 1
    x_low, x_high = (min(x), max(x)) if len(x) else (0.0, 1.0)
    if x_high <= x_low:
        x_high = x_low + 1

    def at_x(value: float) -> float:
        return LEFT + WIDE * (value - x_low) / (x_high - x_low)

    def at_y(value: float) -> float:
        return TOP + TALL * (1 - (value - low) / (high - low))

    x_ticks = [tick for tick in nice_ticks(x_low, x_high, 7) if x_low <= tick <= x_high]
    axes = [part for tick in ticks for part in _level(tick, at_y(tick))]
    axes += [words(tick_text(tick), at_x(tick), HEIGHT - BOTTOM + 22, "tick xtick") for tick in x_ticks]
    axes += [words(x_label, LEFT + WIDE / 2, HEIGHT - 4, "label"), _sideways(y_label)]
    drawn = [_band(line, x, at_x, at_y) for line in lines if line.low is not None and line.high is not None]
    drawn += [part for line in lines for part in _stroke(line, x, at_x, at_y)]
    if mark is not None and low <= mark <= high:
        drawn.insert(0, tag("line", class_="mark", x1=LEFT, x2=WIDTH - RIGHT, y1=at_y(mark), y2=at_y(mark)))
    # A picture in the picture: the script zooms by moving its window.
    window = tag(
        "svg",
        *drawn,
        class_="plot",
        x=LEFT,
        y=TOP,
        width=WIDE,
        height=TALL,
        viewBox=f"{LEFT:g} {TOP:g} {WIDE:g} {TALL:g}",
        preserveAspectRatio="none",
    )
    picture = chart(title, description, WIDTH, HEIGHT, tag("g", *axes, class_="axis", aria_hidden="true"), window)
    data = {
        "x": [x_low, x_high],
        "at": list(x),
        "unit": x_label,
        "lines": [[line.name, list(line.y)] for line in lines],
    }
    figure = tag("div", picture, class_="figure", data_chart=json.dumps(_rounded(data), separators=(",", ":")))
    return figure + (legend(lines) if len(lines) > 1 else Markup(""))


def _rounded(value: object) -> object:
    """Six significant digits: what a reader of the hover text can use."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _level(tick: float, y: float) -> tuple[Markup, Markup]:
    return (
        tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y),
        words(tick_text(tick), LEFT - 8, y + 4, anchor="end"),
    )


def _sideways(text: str) -> Markup:
    place = f"translate(16 {TOP + TALL / 2:.1f}) rotate(-90)"
    return tag("text", text, class_="label", transform=place, text_anchor="middle")


def _stroke(line: Line, x: Sequence[float], at_x: Place, at_y: Place) -> list[Markup]:
    colour, dash = STYLES[line.style % len(STYLES)]
    known = [(a, b) for a, b in zip(x, line.y, strict=True) if b is not None]
    parts = [tag("path", d=_path(x, line.y, at_x, at_y), stroke=colour, stroke_dasharray=dash, class_="line")]
    if len(known) <= MOST_DOTS:
        # A line of no length with round ends is a dot that zooming does not stretch.
        dots = "".join(f"M{at_x(a):.1f} {at_y(b):.1f}h0" for a, b in known)
        parts.append(tag("path", d=dots or "M0 0", stroke=colour, class_="dots"))
    return parts


def _band(line: Line, x: Sequence[float], at_x: Place, at_y: Place) -> Markup:
    colour, _ = STYLES[line.style % len(STYLES)]
    known = [(a, b, c) for a, b, c in zip(x, line.low or (), line.high or (), strict=True) if None not in (b, c)]
    upper = "L".join(f"{at_x(a):.1f} {at_y(c or 0.0):.1f}" for a, _, c in known)
    lower = "L".join(f"{at_x(a):.1f} {at_y(b or 0.0):.1f}" for a, b, _ in reversed(known))
    return tag("path", d=f"M{upper}L{lower}Z" if known else "M0 0", fill=colour, class_="band")


def legend(lines: Sequence[Line]) -> Markup:
    """Names of the lines beside a piece of each."""
    items = []
    for line in lines:
        colour, dash = STYLES[line.style % len(STYLES)]
        piece = tag("line", x1=0, x2=26, y1=4, y2=4, stroke=colour, stroke_width=2.5, stroke_dasharray=dash)
        items.append(
            tag("li", tag("svg", piece, width=26, height=8, aria_hidden="true"), tag("span", line.name, class_="name"))
        )
    return tag("ul", *items, class_="legend")


def _path(x: Sequence[float], y: Values, at_x: Place, at_y: Place) -> str:
    parts, pen_down = [], False
    for a, b in zip(x, y, strict=True):
        if b is None:
            pen_down = False
            continue
        parts.append(f"{'L' if pen_down else 'M'}{at_x(a):.1f} {at_y(b):.1f}")
        pen_down = True
    return "".join(parts) or "M0 0"


def spark(values: Values, width: float = 96, height: float = 20) -> Markup:
    """A small line without axes; decoration beside the numbers of its row."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return Markup("")
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    path = _path(
        range(len(values)),
        values,
        lambda a: 2 + (width - 4) * a / (len(values) - 1),
        lambda b: 2 + (height - 4) * (1 - (b - low) / span),
    )
    box = f"0 0 {width:g} {height:g}"
    return tag("svg", tag("path", d=path), class_="spark", width=width, height=height, viewBox=box, aria_hidden="true")


def stacked_bar(title: str, description: str, shares: Sequence[tuple[str, float, str]]) -> Markup:
    """One bar of 100 % from (name, percent, CSS class); labels stand in the table beside it."""
    parts, at = [], 0.0
    for name, percent, kind in shares:
        width = 10 * percent
        if width > 0:
            shown = max(width - (1.5 if width > 3 else 0), 0.3)
            hint = tag("title", f"{name}: {percent:.1f} %")
            parts.append(tag("rect", hint, x=at, y=0, width=shown, height=46, rx=3, class_=kind))
        at += width
    return chart(title, description, 1000, 46, *parts)


@dataclass
class Bar:
    """A bar of a timeline; `strength` from 0 to 1 fills it from below."""

    row: str
    start: float
    end: float
    text: str
    strength: float | None = None


def timeline(title: str, description: str, bars: Sequence[Bar], x_label: str) -> Markup:
    """Rows of bars over time, from 0 to the last end."""
    rows = list(dict.fromkeys(bar.row for bar in bars))
    label, line = 86.0, 24.0
    height = line * len(rows) + 40
    last = max((bar.end for bar in bars), default=1.0) or 1.0
    wide = WIDTH - label - 10
    axes = []
    for tick in nice_ticks(0, last, 6):
        if tick <= last:
            x = label + wide * tick / last
            axes.append(tag("line", class_="grid", x1=x, x2=x, y1=4, y2=height - 34))
            axes.append(words(tick_text(tick), x, height - 20))
    axes.append(words(x_label, label + wide / 2, height - 3, "label"))
    names = [words(row, label - 8, index * line + 20, "rowname name", "end") for index, row in enumerate(rows)]
    drawn = []
    for bar in bars:
        x, width = label + wide * bar.start / last, max(wide * (bar.end - bar.start) / last, 1.5)
        y, tall = rows.index(bar.row) * line + 6, line - 6
        parts = [tag("title", bar.text), tag("rect", class_="barback", x=x, y=y, width=width, height=tall, rx=2)]
        if bar.strength is not None:
            part = tall * min(max(bar.strength, 0.0), 1.0)
            parts.append(tag("rect", class_="barfill", x=x, y=y + tall - part, width=width, height=part, rx=2))
        drawn.append(tag("g", *parts))
    return chart(title, description, WIDTH, height, tag("g", *axes, class_="axis", aria_hidden="true"), *names, *drawn)


def cividis(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    """Values [rows, columns] as RGBA [rows, columns, 4]; NaN is transparent."""
    span = (high - low) or 1.0
    place = np.clip(np.nan_to_num((values - low) / span), 0, 1) * (len(CIVIDIS) - 1)
    table = np.array(CIVIDIS, dtype=np.float64)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, len(CIVIDIS) - 1)
    share = (place - below)[..., None]
    colours = table[below] * (1 - share) + table[above] * share
    alpha = np.where(np.isnan(values), 0, 255)[..., None]
    return np.concatenate([colours, alpha], axis=-1).astype(np.uint8)


def heat_map(
    title: str,
    description: str,
    rows: Sequence[str],
    values: NDArray[np.float64],
    low: float,
    high: float,
    hours: float,
) -> Markup:
    """A matrix as a picture with row names, a time axis and a colour scale."""
    label, line = 120.0, min(16.0, max(3.0, 420.0 / len(rows)))
    tall, wide = line * len(rows), WIDTH - 130
    place = {"x": label, "y": 4, "width": wide, "height": tall}
    every = max(1, math.ceil(20 / line))  # on a phone the text is that tall
    axes = [
        words(rows[index], label - 6, 4 + line * (index + 0.5) + 4, "tick name", "end")
        for index in range(0, len(rows), every)
    ]
    unit, size = (hours * 60, "minutes") if hours < 3 else (hours, "hours")
    axes += [
        words(tick_text(tick), label + wide * tick / (unit or 1), tall + 20)
        for tick in nice_ticks(0, unit, 6)
        if tick <= unit
    ]
    axes.append(words(size, label + wide / 2, tall + 36, "label"))
    step = 200 / len(CIVIDIS)
    axes += [
        tag("rect", x=label + index * step, y=tall + 46, width=step + 0.5, height=10, fill=f"rgb{colour}")
        for index, colour in enumerate(CIVIDIS)
    ]
    axes.append(words(f"{tick_text(low)} %", label, tall + 70, anchor="start"))
    axes.append(words(f"{tick_text(round(high, 1))} %", label + 200, tall + 70, anchor="end"))
    return chart(
        title,
        description,
        WIDTH,
        tall + 76,
        tag("rect", class_="missing", **place),
        tag("image", class_="pixels", preserveAspectRatio="none", href=_png(cividis(values, low, high)), **place),
        tag("g", *axes, class_="axis", aria_hidden="true"),
    )


def _png(pixels: NDArray[np.uint8]) -> str:
    """Pixels [rows, columns, 4] as a data address."""
    from PIL import Image

    picture = io.BytesIO()
    Image.fromarray(pixels).save(picture, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
