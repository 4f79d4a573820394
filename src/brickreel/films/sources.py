"""`sources.csv`: the user's list of films, with licence and rights."""

import csv
import fnmatch
import glob
import hashlib
import io
import itertools
import os
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
        ".gif",
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


# What the stages write here is no film of the user's, unless a `path` points into it.
RESULTS = "results"


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
    if "\0" in path:
        raise ValueError(f"{table}, line {line}: the path holds a zero byte, which no file's name does")
    if url and not url.startswith(("http://", "https://")):
        raise ValueError(f"{table}, line {line}: '{url}' is not an http or https address")
    return Source(line, path, url, {name: values.get(name, "") for name in FACTS})


def files_of(source: Source, base: Path) -> Iterator[Path]:
    """The files that a `path` means: itself, the films in a folder, or those that a glob matches.

    A folder or glob beside the project's results does not mean what lies among them.

    Raises ValueError when there are none.
    """
    for name in _names(source, os.fspath(base)):
        yield Path(name)


def _names(source: Source, base: str) -> list[str]:
    """As `files_of`: texts, since there may be a hundred thousand each time the graph is looked at."""
    place = os.path.join(base, source.path)
    if os.path.isdir(place):
        found = [os.path.join(folder, name) for folder, names in _walk(place) for name in names if _is_film(name)]
        found = sorted((name for name in found if os.path.isfile(name)), key=lambda name: name.split(os.sep))
    elif not glob.has_magic(source.path) or os.path.isfile(place):
        found = [place]
    else:
        matches = sorted(glob.glob(source.path, root_dir=base or None, recursive=True))
        found = [os.path.join(base, match) for match in matches if _is_film(match)]
        found = [name for name in _without_results(found, source, base) if os.path.isfile(name)]
    if not found:
        raise ValueError(f"no film in '{source.path}'")
    return found


def _walk(place: str) -> Iterator[tuple[str, list[str]]]:
    """The folders under one, with the names of their files; results are not gone into."""
    results = os.path.join(place, os.path.relpath(os.path.realpath(RESULTS), os.path.realpath(place)))
    for folder, folders, names in os.walk(place, onerror=_raise_unless_forbidden):
        folders[:] = [name for name in folders if os.path.join(folder, name) != results]
        yield folder, names


def _without_results(found: list[str], source: Source, base: str) -> list[str]:
    """The files that a pattern matches elsewhere than among results; all, where it points there itself."""
    results = Path(os.path.realpath(RESULTS))
    plain = itertools.takewhile(lambda part: not glob.has_magic(part), Path(source.path).parts)
    if Path(os.path.realpath(os.path.join(base, *plain))).is_relative_to(results):
        return found
    folders = {folder: os.path.realpath(folder) for folder in set(map(os.path.dirname, found))}
    own = {folder for folder, place in folders.items() if Path(place).is_relative_to(results)}
    return [name for name in found if os.path.dirname(name) not in own]


def _raise_unless_forbidden(error: OSError) -> None:
    if not isinstance(error, PermissionError):
        raise error


def _is_film(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def means(source: Source, film: str, base: Path) -> bool:
    """Whether a `path` means this file, were it there."""
    if Path(film).is_relative_to(base / source.path):
        return True
    # For fnmatch a `*` means folders as well, and `**/` therefore one at least.
    pattern = os.path.join(glob.escape(os.fspath(base)), source.path).replace("/**/", "/")
    return glob.has_magic(source.path) and fnmatch.fnmatchcase(film, str(Path(pattern)))


def state(table: Path) -> str:
    """A digest of the films here that the list means: it changes when one comes, goes or gets another size.

    Times are left out: a copied or restored project would look new. `ingest` itself goes by them, and so finds at its
    next run a film that was replaced by one of the same size.

    Empty where the list cannot be read, of which `ingest` tells more.
    """
    digest = hashlib.sha256()
    try:
        for source in read(table):
            for film in _state_of(source, table.parent) if source.path else ():
                digest.update(film)
    except (OSError, ValueError):
        return ""
    return digest.hexdigest()[:16]


def _state_of(source: Source, base: Path) -> Iterator[bytes]:
    """Path and size of each film that a line means."""
    try:
        found = _names(source, os.fspath(base))
    except ValueError:
        found = []
    for name in found:
        try:
            size = os.stat(name).st_size
        except OSError:
            yield os.fsencode(f"{name}\0")
        else:
            yield os.fsencode(f"{name}\0{size}\0")
