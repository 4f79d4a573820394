"""A person's corrections: a CSV that wins over every machine's caption and survives every rerun."""

import csv
from collections.abc import Mapping
from pathlib import Path

from brickreel.captions.items import Caption, by_person


def read(path: Path | None) -> dict[tuple[str, str], Caption]:
    """Corrections by (clip_id, kind); the kind is `clip` where none is given, an empty text drops the clip.

    Of several lines for one clip the last counts, so that new corrections can be added at the end, with their names of
    columns or without.

    Raises ValueError or OSError with the line that is wrong.
    """
    if path is None:
        return {}
    found: dict[tuple[str, str], Caption] = {}
    good = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True, skipinitialspace=True)
            missing = {"clip_id", "text"} - set(reader.fieldnames or ())
            if missing:
                raise ValueError(f"{path} needs the columns clip_id and text (and may have kind): no {sorted(missing)}")
            good = reader.line_num
            for line in reader:
                if _blank(line) or all(line[name] == name for name in line):
                    good = reader.line_num
                    continue
                if None in line or None in (line["clip_id"], line.get("kind", ""), line["text"]):
                    what = "more" if None in line else "fewer"
                    raise ValueError(
                        f"{path}, line {reader.line_num}: has {what} cells than the first line; a text with "
                        'commas needs quotes: "one, two"'
                    )
                name = line["clip_id"].strip(), (line.get("kind") or "clip").strip()
                text = " ".join(line["text"].split())
                if not name[0] or name[1] not in ("clip", "still"):
                    raise ValueError(f"{path}, line {reader.line_num}: needs a clip_id, and kind clip or still")
                found[name] = by_person(text) if text else Caption("dropped", "dropped by a person", source="person")
                good = reader.line_num
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a CSV in UTF-8: {error}") from error
    except csv.Error as error:
        raise ValueError(f"{path}, line {good + 1}: {error}; a quote that is opened must be closed") from error
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file of corrections {path} (caption.corrections)") from None
    return found


def _blank(line: Mapping[str | None, str | list[str] | None]) -> bool:
    """Whether a line has nothing in any cell, as spreadsheets leave them behind."""
    return not any("".join(cells or "").strip() for cells in line.values())
