"""The list of films that were taken out of the dataset. It stands beside the sources, not among results that a clean
build deletes."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brickreel import files

LIST = Path("withdrawn.json")


def film_ids() -> set[str]:
    """Ids of the withdrawn films. Raises ValueError when the list cannot be read."""
    return set(films())


def films() -> dict[str, dict[str, Any]]:
    """Id of each withdrawn film -> its title, the day, and the ids that its clips had.

    Raises ValueError when the list cannot be read.
    """
    if not LIST.exists():
        return {}
    entries = files.read_json(LIST)
    if not isinstance(entries, dict):
        raise ValueError(f"{LIST} must map film ids to facts: restore it from a copy, or withdraw the films again")
    return entries


def add(film_id: str, title: str | None, clips: Sequence[str]) -> None:
    """Put a film on the list."""
    facts = {"title": title, "date": time.strftime("%Y-%m-%d"), "clips": list(clips)}
    files.write_json(LIST, {film_id: facts} | films())
