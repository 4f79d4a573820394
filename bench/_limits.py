"""Limits of the benches: stated once, printed and written in one form, and a bench that misses one ends with status 1.

An aim is a limit too. What could not be measured here has no value and is neither met nor missed.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from brickreel import files


class Limit(NamedTuple):
    """A figure beside its limit."""

    name: str
    value: float | None
    bound: str
    limit: float

    @property
    def verdict(self) -> str:
        """`met`, `MISSED` or `not measured`."""
        if self.value is None:
            return "not measured"
        met = self.value <= self.limit if self.bound == "at most" else self.value >= self.limit
        return "met" if met else "MISSED"


def at_most(name: str, value: float | None, limit: float) -> Limit:
    """A figure that may not be above its limit."""
    return Limit(name, value, "at most", limit)


def at_least(name: str, value: float | None, limit: float) -> Limit:
    """A figure that may not be below its limit."""
    return Limit(name, value, "at least", limit)


def judge(path: str | os.PathLike[str], found: Mapping[str, Any], limits: Sequence[Limit]) -> None:
    """Write what was found with its limits, print these, and end with status 1 when one is missed."""
    files.write_json(path, {**found, "limits": [one._asdict() | {"verdict": one.verdict} for one in limits]})
    width = max((len(one.name) for one in limits), default=0)
    for one in limits:
        value = "-" if one.value is None else f"{one.value:.4g}"
        print(f"limit  {one.name:{width}} {value:>10}  {one.bound:8} {one.limit:<6g} {one.verdict}")
    if any(one.verdict == "MISSED" for one in limits):
        sys.exit(1)
