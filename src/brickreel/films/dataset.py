"""The folder of clips as a dataset: a table that `datasets` and people can read, and a card."""

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
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
_FACTS = ("film_id", "title", "channel", "url", "licence", "rights_holder")


@dataclass
class Totals:
    """What the card says of the clips, added up batch by batch: there may be millions."""

    clips: "Counter[str]" = field(default_factory=Counter)
    """Of each film."""
    films: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Id -> facts of the films that the card lists."""
    licences: "Counter[str]" = field(default_factory=Counter)
    splits: "Counter[str]" = field(default_factory=Counter)
    cadences: "Counter[str]" = field(default_factory=Counter)
    seconds: float = 0.0
    poses: int = 0
    in_poses: bool = False

    def add(self, batch: pa.RecordBatch) -> None:
        """Count the clips of a batch of `cut_index`."""
        self.in_poses = self.in_poses or bool(pc.any(batch["in_poses"]).as_py())
        rate = pc.if_else(batch["in_poses"], batch["pose_rate"], batch["fps"])
        self.seconds += pc.sum(pc.divide(batch["frames"], rate)).as_py() or 0.0
        self.poses += pc.sum(pc.list_value_length(batch["holds"])).as_py() or 0
        self.licences.update(name or "unlicensed" for name in batch["licence"].to_pylist())
        self.splits.update(batch["split"].to_pylist())
        self.cadences.update(batch["cadence"].to_pylist())
        film_ids = batch["film_id"].to_pylist()
        self.clips.update(film_ids)
        for row, film_id in enumerate(film_ids):
            if len(self.films) == LISTED:
                break
            if film_id not in self.films:
                self.films[film_id] = {name: batch[name][row].as_py() for name in _FACTS}


def describe(folder: Path, index: Path) -> None:
    """Write metadata.csv and README.md into `folder`, from all parts of the manifest that there are.

    Shards finish beside each other: they take turns, so that the last one sees all parts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (index.parent / "dataset.lock").open("w") as lock:
        files.flock(lock, lock.name, wait=True)
        wanted = (pc.field("kind") == "clip") & (pc.field("outcome") == "ok")
        columns = ["kind", "outcome", "path", *_COLUMNS, "in_poses", "holds"]
        totals = _write_metadata(folder / METADATA, _batches(index, columns, wanted))
        files.write_text(folder / CARD, card(totals))


def _batches(index: Path, columns: list[str], wanted: Any) -> Iterator[pa.RecordBatch]:
    """All parts of the manifest but those that vanish meanwhile: Snakemake removes what a shard wrote before it lets
    it start again, and that shard describes the folder anew."""
    for part in tables.files_of(index):
        try:
            yield from tables.batches("cut_index", part, columns, wanted)
        except (FileNotFoundError, ValueError):
            # A file that is not there cannot be read either.
            if part.exists():
                raise


def _write_metadata(path: Path, batches: Iterator[pa.RecordBatch]) -> Totals:
    """Write the table, and add up what is written."""
    totals = Totals()
    with files.replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file_name", *_COLUMNS])
        for batch in batches:
            totals.add(batch)
            names = [Path(name).name for name in batch["path"].to_pylist()]
            writer.writerows(zip(names, *(batch[name].to_pylist() for name in _COLUMNS), strict=True))
    return totals


def card(totals: Totals) -> str:
    """The dataset card in Markdown, with the front matter that a hub reads."""
    environment = Environment(
        loader=PackageLoader("brickreel.films"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell
    return environment.get_template("dataset.md.j2").render(
        rows=range(totals.clips.total()),  # of which the card says how many there are
        films=[facts | {"clips": totals.clips[film_id]} for film_id, facts in totals.films.items()],
        film_count=len(totals.clips),
        licences=totals.licences.most_common(),
        splits=totals.splits.most_common(),
        cadences=totals.cadences.most_common(),
        minutes=totals.seconds / 60,
        in_poses=totals.in_poses,
        poses=totals.poses,
    )


def _cell(text: str | None) -> str:
    """Text for a cell of a Markdown table: one line, nothing that Markdown would take for a sign."""
    words = " ".join((text or "").split())
    return "".join(f"\\{sign}" if sign in r"\`*_[]|" else sign for sign in words)
