"""A small project: two films of several shots, the same scene in both, and files that are no films."""

import csv
from pathlib import Path

from brickreel import config
from brickreel.stages import Shard, analyze, curate, cut, ingest
from films import synth

CONFIG = config.load({"analyze": {"transnet": "off"}, "cut": {"short_side": 90, "crf": 23}})
FIRST, SECOND = 'first "one"\nté.mp4', "second.mp4"


def films(folder: Path) -> None:
    """Write the films and their list."""
    shared = synth.scene(50, 20)
    first = synth.Film().add(synth.title("BRICKS", 24), [1] * 24)
    first.add(synth.scene(1, 20), [2] * 20).add(shared, [2] * 20)
    second = synth.Film().add(synth.scene(2, 18), [1] * 18).add(shared, [2] * 20).add(synth.scene(3, 6), [2] * 6)
    first.write(folder / FIRST)
    second.write(folder / SECOND)
    (folder / "notes.mp4").write_text("no film")
    listed(folder, [[FIRST, "The First", "CC0"], [SECOND, "The Second", "CC-BY"], ["notes.mp4", "Notes", "CC0"]])


def listed(folder: Path, rows: list[list[str]]) -> None:
    """Write sources.csv."""
    with (folder / "sources.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["path", "title", "licence"], *rows])


def run(*stages: str, settings: config.Config = CONFIG, shards: int = 2) -> None:
    """Run stages in the working folder, shard after shard."""
    for stage in stages or ("ingest", "analyze", "curate", "cut"):
        if stage in ("ingest", "curate"):
            {"ingest": ingest, "curate": curate}[stage].run(settings)
        else:
            for index in range(shards):
                {"analyze": analyze, "cut": cut}[stage].run(settings, Shard(index, shards))
