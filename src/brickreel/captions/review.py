"""Captions for a person to judge: what they are like as a whole, and twenty at random beside their clips."""

import heapq
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader

from brickreel import files, tables
from brickreel.captions import similar

PAGE, SUMMARY = "review.html", "review.json"
SHOWN = 20
"""Random clips and stills on the page."""
COMPARED = 100_000
"""Captions at most among which near-identical ones are looked for, drawn like those on the page: 7 KB each, 0.1 ms."""
_GROUPS, _MEMBERS = 20, 4  # groups of near-identical captions on the page, and members of each
_BINS = 12  # bars of the histogram of lengths
_OK = pc.field("outcome") == "ok"

Drawn = Sequence[tuple[str, str, str]]
"""Id, kind and text of captions."""


def write(folder: Path, captions: Path, index: Path, budget: Mapping[str, Any] | None) -> None:
    """Write `review.html` and `review.json` to `folder`.

    `captions` and `index` are these tables, `budget` the ledger's sums and the forecast, if money is paid.
    """
    drawn = draw(captions)
    summary = summarise(captions, drawn) | {"budget": dict(budget) if budget else None}
    files.write_json(folder / SUMMARY, summary)
    environment = Environment(loader=PackageLoader("brickreel.captions"), autoescape=True)
    page = environment.get_template("review.html.j2").render(
        summary=summary,
        bars=_bars(summary["words"]["histogram"]),
        clips=_shown(drawn[:SHOWN], captions, index, folder),
    )
    files.write_text(folder / PAGE, page)


def draw(captions: Path) -> Drawn:
    """Random captions, the same for the same clips whatever order they stand in: by a hash of their names."""
    return heapq.nsmallest(COMPARED, _described(captions), key=lambda row: files.draw_of(f"{row[0]}/{row[1]}"))


def _described(captions: Path) -> Iterator[tuple[str, str, str]]:
    for batch in tables.batches("captions", captions, ["clip_id", "kind", "text", "outcome"], _OK):
        yield from zip(*(batch[name].to_pylist() for name in ("clip_id", "kind", "text")), strict=True)


def summarise(captions: Path, drawn: Drawn) -> dict[str, Any]:
    """Counts, lengths and near-identical captions, as plain values."""
    names = ["outcome", "reason", "kind", "model", "source"]
    counted = tables.tally(tables.batches("captions", captions, names), names)
    ok = [row for row in counted if row["outcome"] == "ok"]
    return {
        "outcomes": dict(_counts((row["outcome"], row) for row in counted)),
        "reasons": dict(_counts((row["reason"], row) for row in counted if row["outcome"] != "ok").most_common()),
        "sources": dict(_counts((row["model"] or row["source"], row) for row in ok).most_common()),
        **_words(captions),
        "near_identical": _near_identical(drawn) | {"of": _counts((row["kind"], row) for row in ok)["clip"]},
    }


def _counts(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> "Counter[str]":
    """What rows of `tables.tally` add up to, by a value of each."""
    found: Counter[str] = Counter()
    for value, row in rows:
        found[value] += row["count"]
    return found


def _words(captions: Path) -> dict[str, Any]:
    lengths: Counter[int] = Counter()
    vocabulary: set[str] = set()
    texts = [np.zeros(0, np.int64)]  # hashes: eight bytes of each caption
    for batch in tables.batches("captions", captions, ["text", "outcome"], _OK):
        words = pc.utf8_split_whitespace(batch["text"])
        lengths.update(pc.list_value_length(words).to_pylist())
        vocabulary.update(map(str.lower, pc.unique(pc.utf8_trim(pc.list_flatten(words), ".,;:")).to_pylist()))
        texts.append(np.unique(np.fromiter(map(hash, batch["text"].to_pylist()), np.int64, len(batch))))
    ordered = sorted(lengths)
    numbers = np.cumsum([lengths[length] for length in ordered])
    return {
        "distinct": len(np.unique(np.concatenate(texts))),
        "words": {
            "least": ordered[0] if ordered else None,
            "median": ordered[np.searchsorted(numbers, lengths.total() // 2, "right")] if ordered else None,
            "most": ordered[-1] if ordered else None,
            "vocabulary": len(vocabulary),
            "histogram": _histogram(lengths),
        },
    }


def _near_identical(drawn: Drawn) -> dict[str, Any]:
    clips = sorted(row for row in drawn if row[1] == "clip")
    alike = similar.groups([text for _, _, text in clips])
    groups = [
        {"count": len(group), "text": clips[group[0]][2], "clip_ids": [clips[i][0] for i in group[:_MEMBERS]]}
        for group in alike[:_GROUPS]
    ]
    return {"clips": sum(map(len, alike)), "compared": len(clips), "groups": groups}


def _histogram(lengths: Mapping[int, int]) -> list[dict[str, int]]:
    """Counts of lengths in equal ranges: from, to (exclusive), count."""
    if not lengths:
        return []
    least = min(lengths)
    step = max(1, -(-(max(lengths) + 1 - least) // _BINS))
    counts: Counter[int] = Counter()
    for length, count in lengths.items():
        counts[(length - least) // step] += count
    return [
        {"from": least + i * step, "to": least + (i + 1) * step, "count": counts[i]} for i in range(max(counts) + 1)
    ]


def _bars(histogram: Sequence[Mapping[str, int]]) -> list[dict[str, Any]]:
    most = max((bar["count"] for bar in histogram), default=1)
    return [dict(bar) | {"share": round(100 * bar["count"] / most)} for bar in histogram]


def _shown(drawn: Drawn, captions: Path, index: Path, folder: Path) -> list[dict[str, Any]]:
    """These captions, each with the address of its file seen from the page."""
    ids = frozenset(clip_id for clip_id, _, _ in drawn)
    rows = _by_name(tables.owned("captions", captions, "clip_id", ids.__contains__))
    files_of = _by_name(
        tables.owned("cut_index", index, "clip_id", ids.__contains__, None, ["clip_id", "kind", "path"])
    )
    names = [(clip_id, kind) for clip_id, kind, _ in drawn if (clip_id, kind) in files_of and (clip_id, kind) in rows]
    return [rows[name] | {"address": quote(os.path.relpath(files_of[name]["path"], folder))} for name in names]


def _by_name(rows: pa.Table) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["clip_id"], row["kind"]): row for row in rows.to_pylist()}
