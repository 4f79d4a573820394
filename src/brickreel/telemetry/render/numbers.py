"""Numbers on the page: each is looked up in the summary by its key and carries that key, so that a test can compare."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

SHORT_H = 0.1
"""Hours below this are told in minutes."""


class Numbers:
    """Looks values up by dotted keys, such as `runs.0.time_pct.goodput`."""

    def __init__(self, summary: Mapping[str, Any]) -> None:
        self.summary = summary

    def value(self, key: str) -> Any:
        """The value behind a key; None where the path ends early."""
        found: Any = self.summary
        for part in key.split("."):
            if isinstance(found, list):
                index = int(part)
                found = found[index] if index < len(found) else None
            elif isinstance(found, Mapping):
                found = found.get(part)
            else:
                return None
        return found

    def number(self, key: str, digits: int | None = None, unit: str = "", missing: str = "not measured") -> Markup:
        """A number with thousands separators; without `digits`, three significant ones. Absent is said in words."""
        value = self.value(key)
        if value is None:
            return Markup('<span class="missing-value" data-key="{}">{}</span>').format(key, missing)
        text = plain(value, digits)
        shown = Markup('<span class="n" data-key="{}">{}</span>').format(key, text)
        return (
            shown + Markup('<span class="unit">{}{}</span>').format("\u202f" if unit else "", unit) if unit else shown
        )

    def hours(self, key: str, unit: str) -> Markup:
        """Hours of GPUs or ranks: `4.2 GPU-hours`, or minutes where hours would begin with a row of zeros."""
        value = self.value(key)
        if value is None:
            return self.number(key)
        scale, name = hours_scale(value, unit)
        shown = Markup('<span class="n" data-key="{}"{}>{}</span>').format(
            key, Markup(' data-scale="{}"').format(scale) if scale != 1 else "", plain(value * scale)
        )
        return shown + Markup('<span class="unit">\u202f{}</span>').format(name)

    def text(self, key: str, missing: str = "not stated") -> Markup:
        """A text of the summary."""
        value = self.value(key)
        if value in (None, ""):
            return Markup('<span class="missing-value">{}</span>').format(missing)
        return Markup('<span data-text="{}">{}</span>').format(key, value)

    def moment(self, key: str) -> Markup:
        """A Unix time as date and minute, UTC."""
        value = self.value(key)
        if value is None:
            return escape("not known")
        when = datetime.fromtimestamp(value, UTC)
        return Markup('<time datetime="{}">{}</time>').format(
            when.isoformat(timespec="seconds"), when.strftime("%Y-%m-%d %H:%M UTC")
        )


def hours_scale(hours: float, unit: str) -> tuple[int, str]:
    """What to multiply hours by and the unit that they then have: minutes for a few of them (`GPU-hours` before)."""
    return (60, unit.replace("hours", "minutes")) if 0 < hours < SHORT_H else (1, unit)


def plain(value: float, digits: int | None = None) -> str:
    """A number as text: `digits` decimals, or three significant digits; whole numbers stay whole."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if digits is None:
        if isinstance(value, int) or value == 0 or abs(value) >= 100:
            digits = 0
        else:
            size = len(str(int(abs(value)))) if abs(value) >= 1 else 0
            digits = 3 - size if size else 2 + max(0, -_exponent(value))
    text = f"{value:,.{min(digits, 9)}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text


def _exponent(value: float) -> int:
    return int(f"{abs(value):e}".rpartition("e")[2])
