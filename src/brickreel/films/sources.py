"""`sources.csv`: the user's list of films, with licence and rights."""

import csv
import glob
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FACTS = ("title", "channel", "licence", "rights_holder")
COLUMNS = ("path", "url", *FACTS)
# In folders and globs only files with these suffixes are films; a file named in `path` is tried whatever its name.
SUFFIXES = frozenset(
    [
        ".3gp",
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    ]
)


class Source(NamedTuple):
    """One line of the list."""

    line: int
    path: str
    url: str
    facts: dict[str, str]


def read(table: Path) -> list[Source]:
    """Read the list. Raises FileNotFoundError or ValueError with a sentence that names the line."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no {table}: list the films there, with the columns {', '.join(COLUMNS)} (`ingest.sources`)"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{table} is not UTF-8 text: save it as CSV in UTF-8") from None
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        unknown = sorted(set(rows.fieldnames or ()) - set(COLUMNS))
        if unknown or not {"path", "url"} & set(rows.fieldnames or ()):
            raise ValueError(
                f"{table} must have the columns path or url, and may have {', '.join(FACTS)}"
                + (f"; it has {', '.join(map(repr, unknown))}" if unknown else "")
            )
        return [_source(table, rows.line_num, row) for row in rows]
    except csv.Error as error:
        raise ValueError(f"{table}, line {rows.line_num}: {error}") from None


def _source(table: Path, line: int, row: dict[str, str | None]) -> Source:
    if None in row or any(value is None for value in row.values()):
        raise ValueError(f"{table}, line {line}: has another number of columns than the first line")
    values = {name: (value or "").strip() for name, value in row.items()}
    path, url = (row.get("path") or "").strip("\r\n") if values.get("path") else "", values.get("url", "")
    if bool(path) == bool(url):
        raise ValueError(f"{table}, line {line}: give either a path or a url")
    if url and not url.startswith(("http://", "https://")):
        raise ValueError(f"{table}, line {line}: '{url}' is not an http or https address")
    return Source(line, path, url, {name: values.get(name, "") for name in FACTS})


def files_of(source: Source, base: Path) -> Iterator[Path]:
    """The files that a `path` means: itself, the films in a folder, or those that a glob matches.

    Raises ValueError when there are none.
    """
    place = base / source.path
    if place.is_dir():
        found = [path for path in sorted(place.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    elif place.is_file() or not glob.has_magic(source.path):
        found = [place]
    else:
        matches = glob.glob(source.path, root_dir=base, recursive=True)
        found = [base / match for match in sorted(matches) if (base / match).is_file()]
        found = [path for path in found if path.suffix.lower() in SUFFIXES]
    if not found:
        raise ValueError(f"no film in '{source.path}'")
    yield from found
