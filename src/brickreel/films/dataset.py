"""The folder of clips as a dataset: a table that `datasets` and people can read, and a card."""

import csv
import fcntl
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader

from brickreel import files, tables

METADATA, CARD = "metadata.csv", "README.md"
# Films that the card lists; the table beside it names every film.
LISTED = 500
_COLUMNS = (
    "clip_id", "film_id", "frames", "fps", "pose_rate", "cadence", "width", "height", "split",
    "title", "channel", "url", "licence", "rights_holder", "sha256",
)  # fmt: skip


def describe(folder: Path, index: Path) -> None:
    """Write metadata.csv and README.md into `folder`, from all parts of the manifest that there are.

    Shards finish beside each other: they take turns, so that the last one sees all parts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (index.parent / "dataset.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = (pc.field("kind") == "clip") & (pc.field("outcome") == "ok")
        rows = tables.read("cut_index", index, where=wanted).to_pylist()
        _write_metadata(folder / METADATA, rows)
        files.write_text(folder / CARD, card(rows))


def _write_metadata(path: Path, rows: list[dict[str, Any]]) -> None:
    with files.replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file_name", *_COLUMNS])
        for row in rows:
            writer.writerow([Path(row["path"]).name, *(row[name] for name in _COLUMNS)])


def card(rows: list[dict[str, Any]]) -> str:
    """The dataset card in Markdown, with the front matter that a hub reads."""
    films: dict[str, dict[str, Any]] = {}
    for row in rows:
        films.setdefault(row["film_id"], row | {"clips": 0})["clips"] += 1
    environment = Environment(
        loader=PackageLoader("brickreel.films"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell
    rate = [row["frames"] / (row["pose_rate"] if row["in_poses"] else row["fps"]) for row in rows]
    return environment.get_template("dataset.md.j2").render(
        rows=rows,
        films=list(films.values())[:LISTED],
        film_count=len(films),
        licences=Counter(row["licence"] or "unlicensed" for row in rows).most_common(),
        splits=Counter(row["split"] for row in rows).most_common(),
        cadences=Counter(row["cadence"] for row in rows).most_common(),
        minutes=sum(rate) / 60,
        in_poses=bool(rows and rows[0]["in_poses"]),
        poses=sum(len(row["holds"]) for row in rows),
    )


def _cell(text: str | None) -> str:
    """Text for a cell of a Markdown table: one line, nothing that Markdown would take for a sign."""
    words = " ".join((text or "").split())
    return "".join(f"\\{sign}" if sign in r"\`*_[]|" else sign for sign in words)
