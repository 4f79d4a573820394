"""List the films: find or download them, hash and probe them, and say of each whether it can be used, and why."""

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from brickreel import files, tables
from brickreel.cluster import exits
from brickreel.config import Config, Ingest
from brickreel.films import download, isolated, probe, sources
from brickreel.progress import Bar

logger = logging.getLogger("brickreel")

OUTPUT = Path("results/ingest/sources.parquet")
DOWNLOADS = Path("results/ingest/films")
# What films were found to be: a restart hashes and probes only what is new.
FINISHED = Path("results/ingest/finished.jsonl")
UNLICENSED = "unlicensed"


def run(config: Config) -> None:
    """Write results/ingest/sources.parquet.

    Raises ValueError when no film can be used; OSError when the disk is full, or when a film is out of reach for a
    reason that passes: without it in the table, later stages would throw away what they made of it.
    """
    settings = config.ingest
    listed = sources.read(settings.sources)
    rows: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    journal = Journal(FINISHED)
    with Bar("ingest", len(listed), "sources") as bar:
        for source in listed:
            for row in _films(source, settings, journal):
                rows.append(_without_repetition(row, seen))
                if row["outcome"] != "ok":
                    logger.info("ingest: %s: %s: %s", row["path"] or row["url"], row["outcome"], row["reason"])
            bar.advance()
    journal.keep()
    tables.write("sources", OUTPUT, rows)
    usable = sum(row["outcome"] == "ok" for row in rows)
    logger.info("ingest: %d of %d films can be used", usable, len(rows))
    if not usable:
        first = f"; the first, {rows[0]['path'] or rows[0]['url']}: {rows[0]['reason']}" if rows else ""
        raise ValueError(f"{settings.sources} lists no film that can be used{first} (reasons in {OUTPUT})")


def _films(source: sources.Source, settings: Ingest, journal: "Journal") -> Iterator[dict[str, Any]]:
    """One finished row per film that a line of the list means."""
    if source.url:
        yield from _downloads(source, settings, journal)
        return
    base = settings.sources.parent
    for path in journal.away:
        if sources.means(source, path, base):
            exits.unopened(os.path.realpath(path))
    try:
        found = list(sources.files_of(source, base))
    except (ValueError, OSError) as error:
        _stop_where_it_passes(error)
        yield _row(source, source.path, "failed", str(error))
        return
    for path in found:
        yield _film(source, path, settings, journal)


def _downloads(source: sources.Source, settings: Ingest, journal: "Journal") -> Iterator[dict[str, Any]]:
    try:
        items = download.expand(source.url, DOWNLOADS)
    except ValueError as error:
        yield _row(source, "", "failed", str(error))
        return
    lists = {source.url}
    for item in items:
        # What the user's table says goes before what the site says.
        said = {"title": item.title, "channel": item.channel, "licence": item.licence}
        facts = {name: value or said.get(name) or "" for name, value in source.facts.items()}
        one = source._replace(url=item.url, facts=facts)
        if not settings.allow_unlicensed and not facts["licence"]:
            yield _row(one, "", "dropped", _no_licence())
            continue
        try:
            found = download.fetch(item, DOWNLOADS, settings.max_height)
        except ValueError as error:
            yield _row(one, "", "failed", str(error))
            continue
        if isinstance(found, Path):
            row = _film(one, found, settings, journal)
            if (row["height"] or 0) > settings.max_height:
                logger.info("ingest: %s: %s has more rows than ingest.max_height and is used as it is", item.url, found)
            yield row
        elif item.url not in lists:
            # A list in the list: its films are next. One that names itself is read once.
            lists.add(item.url)
            items += found


def _film(source: sources.Source, path: Path, settings: Ingest, journal: "Journal") -> dict[str, Any]:
    # Whatever becomes of it now, what is known of it is kept for as long as it is listed.
    journal.used.add(str(path))
    if not os.path.exists(path):
        return _row(source, str(path), "failed", exits.unopened(os.path.realpath(path)))
    if not os.path.isfile(path):
        return _row(source, str(path), "failed", "is not a file")
    if _shown(path) != str(path):
        return _row(source, str(path), "failed", "has a name that is not UTF-8: rename the file")
    if not source.facts["licence"] and not settings.allow_unlicensed:
        return _row(source, str(path), "dropped", _no_licence())
    limits = isolated.Limits(**settings.limits.model_dump())
    try:
        # Before it is read: what changes meanwhile is read again next time.
        state = FileState.of(path)
        known = journal.find(state)
        film_id = known[0] if known else files.sha256(path)[:16]
        found = known[1] if known else isolated.call(probe.probe, (str(path.resolve()),), limits)
    except (ValueError, OSError) as error:
        _stop_where_it_passes(error)
        return _row(source, str(path), "failed", exits.unopened(os.path.realpath(path)) or str(error))
    journal.add(state, film_id, found)
    facts = found._asdict()
    note = facts.pop("note")
    return _row(source, str(path), "ok", note) | facts | {"film_id": film_id}


def _stop_where_it_passes(error: Exception) -> None:
    """Raise an error that is no fault of the film, and which the next attempt may not meet."""
    if exits.passes(error) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        raise error


class FileState(NamedTuple):
    """What tells a file from what it was before, without reading it."""

    path: str
    size: int
    """In bytes."""
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """The state of a file now."""
        facts = path.stat()
        return cls(str(path), facts.st_size, facts.st_mtime_ns)


class Journal:
    """Films that are hashed and probed, by the state of their file: JSON lines. No setting changes what they are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = {line["path"]: line for line in files.read_json_lines(path) if "path" in line}
        self.used: set[str] = set()
        self.away = [
            film for film in self.lines if not os.path.exists(film) and exits.unmounted(os.path.realpath(film))
        ]
        """Films that seem to be on a file system that is not mounted now."""

    def find(self, state: FileState) -> tuple[str, probe.Probe] | None:
        """Id and facts of a film, if its file is still the same."""
        line = self.lines.get(state.path, {})
        if any(line.get(name) != value for name, value in state._asdict().items()):
            return None
        if not {"film_id", *probe.Probe._fields} <= set(line):
            return None
        return line["film_id"], probe.Probe(**{name: line[name] for name in probe.Probe._fields})

    def add(self, state: FileState, film_id: str, found: probe.Probe) -> None:
        """Put down a film, unless it is there already."""
        line = {**state._asdict(), "film_id": film_id, **found._asdict()}
        if self.lines.get(state.path) != line:
            self.lines[state.path] = line
            files.append_json_line(self.path, line)

    def keep(self) -> None:
        """Leave only the films that are listed now."""
        lines = [line for path, line in self.lines.items() if path in self.used]
        files.write_text(self.path, "".join(files.json_line(line) for line in lines))


def _no_licence() -> str:
    return "has no licence: fill the column `licence`, or set ingest.allow_unlicensed"


def _row(source: sources.Source, path: str, outcome: str, reason: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(tables.SCHEMAS["sources"].names)
    facts = {name: value or None for name, value in source.facts.items()}
    facts["licence"] = facts["licence"] or UNLICENSED
    return row | facts | {"path": _shown(path) or None, "url": source.url or None, "outcome": outcome, "reason": reason}


def _shown(path: str | Path) -> str:
    """The path as text for a table, where bytes that are no UTF-8 have no place."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _without_repetition(row: dict[str, Any], seen: dict[str, str]) -> dict[str, Any]:
    """The same content twice, under two names or listed twice, is used once."""
    if row["outcome"] == "ok":
        if row["film_id"] in seen:
            return row | {"outcome": "dropped", "reason": f"has the same content as {seen[row['film_id']]}"}
        seen[row["film_id"]] = row["path"]
    return row
