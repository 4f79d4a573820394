"""Captions for a person to judge: what they are like as a whole, and twenty at random beside their clips."""

import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader

from brickreel import files
from brickreel.captions import similar

PAGE, SUMMARY = "review.html", "review.json"
SHOWN = 20
"""Random clips and stills on the page."""
_GROUPS, _MEMBERS = 20, 4  # groups of near-identical captions on the page, and members of each
_BINS = 12  # bars of the histogram of lengths

Rows = Sequence[Mapping[str, Any]]


def write(folder: Path, captions: Rows, index: Rows, budget: Mapping[str, Any] | None) -> None:
    """Write `review.html` and `review.json` to `folder`.

    `captions` and `index` are all rows of these tables, `budget` the ledger's sums and the forecast, if money is paid.
    """
    summary = summarise(captions) | {"budget": dict(budget) if budget else None}
    files.write_json(folder / SUMMARY, summary)
    paths = {(row["clip_id"], row["kind"]): row["path"] for row in index}
    environment = Environment(loader=PackageLoader("brickreel.captions"), autoescape=True)
    page = environment.get_template("review.html.j2").render(
        summary=summary, bars=_bars(summary["words"]["histogram"]), clips=_chosen(captions, paths, folder)
    )
    files.write_text(folder / PAGE, page)


def summarise(captions: Rows) -> dict[str, Any]:
    """Counts, lengths and near-identical captions, as plain values."""
    ok = sorted((row for row in captions if row["outcome"] == "ok"), key=lambda row: (row["clip_id"], row["kind"]))
    lengths = sorted(len(row["text"].split()) for row in ok)
    clips = [row for row in ok if row["kind"] == "clip"]
    alike = similar.groups([row["text"] for row in clips])
    return {
        "outcomes": dict(Counter(row["outcome"] for row in captions)),
        "reasons": dict(Counter(row["reason"] for row in captions if row["outcome"] != "ok").most_common()),
        "sources": dict(Counter(row["model"] or row["source"] for row in ok).most_common()),
        "distinct": len({row["text"] for row in ok}),
        "words": {
            "least": lengths[0] if lengths else None,
            "median": lengths[len(lengths) // 2] if lengths else None,
            "most": lengths[-1] if lengths else None,
            "vocabulary": len({word.strip(".,;:").lower() for row in ok for word in row["text"].split()}),
            "histogram": _histogram(lengths),
        },
        "near_identical": {
            "clips": sum(map(len, alike)),
            "groups": [
                {
                    "count": len(group),
                    "text": clips[group[0]]["text"],
                    "clip_ids": [clips[i]["clip_id"] for i in group[:_MEMBERS]],
                }
                for group in alike[:_GROUPS]
            ],
        },
    }


def _histogram(lengths: Sequence[int]) -> list[dict[str, int]]:
    """Counts of lengths in equal ranges: from, to (exclusive), count."""
    if not lengths:
        return []
    step = max(1, -(-(lengths[-1] + 1 - lengths[0]) // _BINS))
    counts = Counter((length - lengths[0]) // step for length in lengths)
    return [
        {"from": lengths[0] + i * step, "to": lengths[0] + (i + 1) * step, "count": counts[i]}
        for i in range(max(counts) + 1)
    ]


def _bars(histogram: Sequence[Mapping[str, int]]) -> list[dict[str, Any]]:
    most = max((bar["count"] for bar in histogram), default=1)
    return [dict(bar) | {"share": round(100 * bar["count"] / most)} for bar in histogram]


def _chosen(captions: Rows, paths: Mapping[tuple[str, str], str], folder: Path) -> list[dict[str, Any]]:
    """Random captions, the same for the same captions, with the address of their file seen from the page."""
    ok = sorted((row for row in captions if row["outcome"] == "ok"), key=lambda row: (row["clip_id"], row["kind"]))
    picked = random.Random(len(ok)).sample(ok, min(SHOWN, len(ok)))  # noqa: S311  no secret depends on it
    return [
        dict(row) | {"address": quote(os.path.relpath(paths[row["clip_id"], row["kind"]], folder))}
        for row in picked
        if (row["clip_id"], row["kind"]) in paths
    ]
