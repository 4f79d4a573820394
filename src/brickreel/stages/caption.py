"""caption: describe clips and stills, by a person, by measurement, or by an OpenAI-compatible endpoint."""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from brickreel import tables
from brickreel.captions import checks, corrections, embedded, review
from brickreel.captions.items import Caption, Item, by_person, item, row
from brickreel.captions.judge import failed
from brickreel.config import Caption as Settings
from brickreel.config import Config
from brickreel.progress import Bar
from brickreel.stages import Shard

logger = logging.getLogger("brickreel")

INDEX = Path("results/cut/index.parquet")
CAPTIONS = Path("results/caption/captions.parquet")
_GOOD = pc.field("outcome") == "ok"

Name = tuple[str, str]


def run(config: Config, shard: Shard = Shard()) -> None:  # noqa: B008  (frozen)
    """Write one row per clip and still of this shard to `results/caption/captions.parquet/{shard}.parquet`.

    Raises ValueError when more than `caption.max_failed_share` of the items fail: nothing is written then, and what
    was answered stays in the ledger.
    """
    settings = config.caption
    by_hand = corrections.read(settings.corrections)
    if settings.captioner == "openai":
        from brickreel.captions import endpoint

        endpoint.check(settings)
    if shard.index == 0:
        _warn_of_strangers(by_hand, settings)
    rows = tables.owned("cut_index", INDEX, "clip_id", shard.owns, where=_GOOD).to_pylist()
    names: list[Name] = [(r["clip_id"], r["kind"]) for r in rows]
    captions: dict[Name, Caption] = {}
    items: list[Item] = []
    for name, entry in zip(names, rows, strict=True):
        if name in by_hand:
            captions[name] = by_hand[name]
        elif entry["text"] is not None:
            captions[name] = _adopted(entry["text"])
        else:
            try:
                items.append(item(entry))
            except OSError as error:
                captions[name] = failed(f"its file cannot be read: {error}")
    captions |= _by_machine(items, settings, shard)
    _write(names, captions, settings, shard)
    _review(settings, shard)


def _warn_of_strangers(by_hand: Mapping[Name, Caption], settings: Settings) -> None:
    """A correction with a misspelt id would otherwise be lost without a word."""
    corrected = pc.field("clip_id").isin(pa.array([clip_id for clip_id, _ in by_hand], pa.string()))
    found = tables.read("cut_index", INDEX, columns=["clip_id", "kind"], where=corrected & _GOOD)
    known = set(zip(found["clip_id"].to_pylist(), found["kind"].to_pylist(), strict=True))
    strangers = [f"{clip_id} ({kind})" for clip_id, kind in by_hand if (clip_id, kind) not in known]
    if strangers:
        logger.warning(
            "caption: %d of the corrections in %s are for clips that are not in the dataset: %s%s",
            len(strangers), settings.corrections, ", ".join(strangers[:5]), ", ..." if len(strangers) > 5 else "",
        )  # fmt: skip


def _adopted(text: str) -> Caption:
    """A caption that came with the dataset; texts that only say that there is none are dropped."""
    problem = checks.sentinel(text)
    return Caption("dropped", problem, source="person") if problem else by_person(text)


def _by_machine(items: Sequence[Item], settings: Settings, shard: Shard) -> dict[Name, Caption]:
    if settings.captioner == "embedded":
        with Bar(f"caption {shard.name}", len(items), "clips") as bar:
            found = {}
            for each in items:
                found[each.name] = _measured(each)
                bar.advance()
        return found
    from brickreel.captions import endpoint

    return asyncio.run(endpoint.caption(items, settings, shard, allowed_failures(len(items), settings)))


def _measured(each: Item) -> Caption:
    try:
        if each.kind == "still":
            answer = embedded.describe_still(each.path)
        else:
            answer = embedded.describe_clip(each.path, each.frames, each.holds, each.in_poses, each.fps, each.pose_rate)
    except (ValueError, OSError) as error:
        return failed(str(error), [])
    return Caption("ok", answer=answer, model=embedded.MODEL, prompt_version=None)


def allowed_failures(count: int, settings: Settings) -> int:
    """How many of so many items may fail; rounded up, so that one bad file does not stop a small shard."""
    return math.ceil(settings.max_failed_share * count)


def _write(names: Sequence[Name], captions: dict[Name, Caption], settings: Settings, shard: Shard) -> None:
    counts = Counter(captions[name].outcome for name in names)
    reasons = Counter(captions[name].reason for name in names if captions[name].reason)
    logger.info(
        "caption %s: %d ok, %d dropped, %d failed%s", shard.name, counts["ok"], counts["dropped"], counts["failed"],
        "".join(f"; {count} x {reason}" for reason, count in reasons.most_common(5)),
    )  # fmt: skip
    if counts["failed"] > allowed_failures(len(names), settings):
        raise ValueError(
            f"{counts['failed']} of {len(names)} captions failed, more than caption.max_failed_share "
            f"({settings.max_failed_share:.0%}) allows; most often: {reasons.most_common(1)[0][0]}"
        )
    tables.remove_parts(CAPTIONS, shard.count)
    path = CAPTIONS / f"{shard.name}.parquet"
    tables.write("captions", path, [row(*name, captions[name]) for name in names])


def _review(settings: Settings, shard: Shard) -> None:
    """The last shard to end writes the page on which a person judges all captions."""
    if len(tables.files_of(CAPTIONS)) < shard.count:
        return
    budget = None
    if settings.captioner == "openai":
        from brickreel.captions import endpoint

        budget = endpoint.spent(settings)
    try:
        review.write(CAPTIONS.parent, CAPTIONS, INDEX, budget)
    except (OSError, ValueError):
        if len(tables.files_of(CAPTIONS)) < shard.count:
            return  # Snakemake removes the part of each shard that it starts again; one of them is the last to end
        raise
    logger.info("caption: look at %s", CAPTIONS.parent / review.PAGE)
