"""evaluate: score every sampled checkpoint against held-out clips, in pose time.

Writes `results/evaluate/{run}/scores.json` - metrics with intervals, the same of held-out clips among themselves, and
the rank correlation of the held-out loss with them -, beside it `videos.json` with every video's own values, and
`nearest.jpg`, which shows the nearest training clip of every sample. What is missing is a reason in place of a value.
"""

import heapq
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from brickreel import files, tables
from brickreel.config import Config, RunData
from brickreel.evaluation import poses, scoring, seen, sheets
from brickreel.evaluation.correlation import gauge_correlation
from brickreel.evaluation.poses import Shown
from brickreel.evaluation.scoring import Library, Measured, Scorer
from brickreel.progress import Bar
from brickreel.training import final

logger = logging.getLogger("brickreel")

CLIPS = Path("results/cut/index.parquet")
CAPTIONS = Path("results/caption/captions.parquet")
MOST_NEAREST = 24

_GOOD = (pc.field("outcome") == "ok") & (pc.field("kind") == "clip")
_CHOSEN_BY = ["clip_id", "kind", "split", "outcome", "holds", "frames"]

Set = tuple[int, str, bool, int]
"""Step, weights, with its prompt or without, multiple of the trained length."""


def run(config: Config, run: str) -> None:
    """Score one run.

    Raises FileNotFoundError before `sample` has run, ValueError when not one of its videos can be read.
    """
    gaps: list[str] = []
    about = final.read(Path("results/train") / run)
    last = about["step"] if about else None
    samples = _made_alike(_up_to_final(_samples(run), last, gaps), gaps)
    data = config.run(run).data
    library = _library(config, data, gaps)
    scorer = Scorer(config.evaluate, library)
    heldout = _heldout(scorer, config, data, gaps)
    _note_shown(run, last, gaps)
    measured = _measure(samples, scorer, data, f"evaluate {run}", gaps)
    scores = _scores(measured, heldout, scorer, _gauge(run), config)
    folder = Path("results/evaluate") / run
    files.write_json(folder / "videos.json", [_video(one, library) for one in measured])
    _nearest_sheet(measured, library, config, data, folder / "nearest.jpg", run)
    files.write_json(folder / "scores.json", {"run": run, **scores, "gaps": gaps})
    for gap in gaps:
        logger.warning("evaluate %s: %s", run, gap)
    _say(run, scores, len(measured), len(heldout))


def _samples(run: str) -> list[dict[str, Any]]:
    """Rows of all sampled videos, in the order of their steps."""
    folder = Path("results/sample") / run
    found = [
        row
        for path in sorted(folder.glob("step-*/samples.parquet"))
        for row in tables.read("samples", path).to_pylist()
    ]
    if not found:
        raise FileNotFoundError(f"{folder} has no samples: run `brickreel sample --run {run}` first")
    return found


def _up_to_final(samples: list[dict[str, Any]], last: int | None, gaps: list[str]) -> list[dict[str, Any]]:
    """Without the steps beyond the final weights, which are there when a run was told to go on or to stop earlier."""
    beyond = sorted({row["step"] for row in samples if last is not None and row["step"] > last})
    if beyond:
        steps = ", ".join(map(str, beyond))
        gaps.append(f"left out: samples of step {steps}, since the final weights are of step {last}")
    return [row for row in samples if row["step"] not in beyond]


def _made_alike(samples: list[dict[str, Any]], gaps: list[str]) -> list[dict[str, Any]]:
    """Without the steps whose videos were made in another way than those of the last step: one series is of one kind.

    The last step is the last that has any. Others are there when settings changed after their checkpoint was gone.
    """
    steps = sorted({row["step"] for row in samples})
    last = max((row["step"] for row in samples if row["outcome"] == "ok"), default=steps[-1])
    wanted = [row for row in samples if row["step"] == last]
    others = [step for step in steps if not _alike([row for row in samples if row["step"] == step], wanted)]
    if others:
        gaps.append(
            f"left out: samples of step {', '.join(map(str, others))}, made from other prompts, seeds or settings than "
            f"those of step {last}"
        )
    return [row for row in samples if row["step"] not in others]


def _alike(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the usual videos of two steps were made in one way.

    The base model's sampler may be another: so may be its objective. A video that failed has no frames to compare.
    """
    usual, wanted = ([row for row in of if row["conditional"] and row["length"] == 1] for of in (rows, others))
    for names in (("prompt", "seed"), ("steps", "guidance", "height", "width", "pose_rate")):
        if _told(usual, names) != _told(wanted, names):
            return False
    made = ("frames", "holds", "sampler") if all(row["step"] for row in [*usual, *wanted]) else ("frames", "holds")
    found, expected = ([row for row in of if row["outcome"] == "ok"] for of in (usual, wanted))
    return not found or not expected or _told(found, made) == _told(expected, made)


def _told(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> frozenset[str]:
    return frozenset(str([row[name] for name in names]) for row in rows)


def _clips(split: str, most: int, useful: Any = None) -> tuple[list[dict[str, Any]], int]:
    """The first `most` clips of a split that pass the expression `useful`, with their captions; the number of all.

    None where there is no dataset any more. In the order of their ids' hashes the first ones are a fair choice of all
    films, whose ids those of clips begin with.
    """
    if not CLIPS.exists():
        return [], 0
    wanted = _GOOD & (pc.field("split") == split)
    ids: list[str] = []
    count = 0
    for batch in tables.batches("cut_index", CLIPS, _CHOSEN_BY, wanted):
        count += batch.num_rows
        shown = batch if useful is None else batch.filter(useful)
        ids = heapq.nsmallest(most, [*ids, *shown["clip_id"].to_pylist()], key=_hash)
    chosen = frozenset(ids)
    rows = tables.owned("cut_index", CLIPS, "clip_id", chosen.__contains__, wanted).to_pylist()
    texts = _texts(chosen)
    # As it was encoded: a corrected caption stands before the one that came with an adopted clip.
    rows = [row | {"text": texts.get(row["clip_id"]) or row["text"]} for row in rows]
    return sorted(rows, key=lambda row: _hash(row["clip_id"])), count


def _hash(clip_id: str) -> bytes:
    return sha256(clip_id.encode()).digest()


def _texts(clips: frozenset[str]) -> dict[str, str]:
    if not CAPTIONS.exists():
        return {}
    found = tables.owned(
        "captions", CAPTIONS, "clip_id", clips.__contains__, _GOOD, ["clip_id", "text", "kind", "outcome"]
    )
    return dict(zip(found["clip_id"].to_pylist(), found["text"].to_pylist(), strict=True))


def _stride(data: RunData) -> int:
    """Poses from one shown pose to the next. A run on frames is judged by all poses, since it should show them all."""
    return data.stride if data.time == "poses" else 1


def _library(config: Config, data: RunData, gaps: list[str]) -> Library:
    most = config.evaluate.max_training_clips
    clips, count = _clips("train", most)
    library, troubles = Library(), list[str]()
    for row, thumbnails in poses.thumbnails_of(clips, _stride(data), config.sample.resolution, troubles):
        library.rows.append(row)
        library.thumbnails.append(thumbnails)
    _note(gaps, "training clips cannot be read", troubles)
    if count > most:
        gaps.append(f"copies are looked for in {most} of {count} training clips (evaluate.max_training_clips)")
    return library


def _heldout(scorer: Scorer, config: Config, data: RunData, gaps: list[str]) -> list[Measured]:
    settings, most = config.sample, config.evaluate.max_clips
    # Each clip shows one window at least.
    clips, count = _clips("heldout", most, poses.has_window(_stride(data)))
    if not count:
        gaps.append("there is no held-out clip: distances to them and the ceiling are not measured")
    troubles: list[str] = []
    shown = poses.windows(clips, settings.frames, settings.resolution, _stride(data), most, troubles)
    found = [one for part in _parts(shown) for one in scorer.measure(part)]
    _note(gaps, "held-out clips cannot be read", troubles)
    if count > most:
        gaps.append(f"samples are compared with {most} of {count} held-out clips (evaluate.max_clips)")
    return found


def _note_shown(run: str, last: int | None, gaps: list[str]) -> None:
    """A film that is held out now may have been trained on before another one was withdrawn."""
    if not CLIPS.exists():
        return
    held = tables.batches("cut_index", CLIPS, ["film_id", *_CHOSEN_BY], _GOOD & (pc.field("split") == "heldout"))
    if known := seen.in_training(run, seen.films_of(held), last):
        gaps.append(f"held-out films that training was shown, and which test nothing new: {seen.named(known)}")


def _measure(
    samples: Sequence[dict[str, Any]], scorer: Scorer, data: RunData, label: str, gaps: list[str]
) -> list[Measured]:
    """Read and measure the videos, some at a time."""
    made = [row for row in samples if row["outcome"] == "ok"]
    failed = Counter(row["reason"] for row in samples if row["outcome"] != "ok")
    gaps += [f"{count} videos were not made: {reason}" for reason, count in failed.items()]
    troubles: list[str] = []
    found: list[Measured] = []
    with Bar(label, len(made), "videos") as bar:
        for part in _parts(poses.of_samples(made, data, troubles)):
            found += scorer.measure(part)
            bar.advance(len(part))
    _note(gaps, "sampled videos cannot be read", troubles)
    if not found:
        raise ValueError(f"no sampled video can be evaluated; the first reason: {(troubles or list(failed))[0]}")
    return found


def _parts(videos: Iterable[Shown]) -> Iterator[list[Shown]]:
    """Videos that are measured together, as many as memory holds."""
    part: list[Shown] = []
    for shown in videos:
        part.append(shown)
        size = sum(one.frames.nbytes + one.poses.nbytes for one in part)
        if len(part) == scoring.VIDEOS_AT_ONCE or size >= scoring.BYTES_AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def _note(gaps: list[str], what: str, troubles: Sequence[str]) -> None:
    if troubles:
        gaps.append(f"{len(troubles)} {what}; the first: {troubles[0]}")


def _gauge(run: str) -> list[dict[str, Any]]:
    return tables.read_log("gauge", Path("results/train") / run / "gauge.jsonl").to_pylist()


def _scores(
    measured: Sequence[Measured],
    heldout: Sequence[Measured],
    scorer: Scorer,
    gauge: Sequence[Mapping[str, Any]],
    config: Config,
) -> dict[str, Any]:
    """Metrics of every set of videos, the ceiling, and the correlation over steps."""
    sets: dict[Set, list[Measured]] = {}
    for one in measured:
        row = one.row
        sets.setdefault((row["step"], row["weights"], bool(row["conditional"]), row["length"]), []).append(one)
    network = config.evaluate.features
    no_features = scorer.troubles.get(network)
    halves = scoring.halves(heldout)
    metrics = []
    for (step, weights, conditional, length), videos in sorted(sets.items(), key=_order):
        about = {"step": step, "weights": weights, "conditional": conditional, "length": length}
        metrics += scoring.rows_of(about, videos, ["prompt", "seed"], halves, no_features)
    usual = [len(videos) for (_, _, conditional, length), videos in sets.items() if conditional and length == 1]
    ceiling = scoring.ceiling(heldout, max(usual, default=0), no_features)
    correlation = gauge_correlation(metrics, ceiling, gauge, config.sample.weights[0])
    return {"features": network, "metrics": metrics, "ceiling": ceiling, "gauge_correlation": correlation}


def _order(item: tuple[Set, list[Measured]]) -> tuple[bool, int, int, str]:
    step, weights, conditional, length = item[0]
    return not conditional, length, step, weights


def _video(one: Measured, library: Library) -> dict[str, Any]:
    """One video's own values, and the training clip that is nearest to it."""
    names = ("path", "prompt", "seed", "step", "weights", "conditional", "length")
    near = one.nearest
    return {
        **{name: one.row[name] for name in names},
        "poses": one.poses,
        **{name: value for name, value in one.values.items() if not isinstance(value, str)},
        "nearest": near and {"clip_id": library.rows[near.clip]["clip_id"], "first_pose": near.offset},
    }


def _nearest_sheet(
    measured: Sequence[Measured], library: Library, config: Config, data: RunData, path: Path, run: str
) -> None:
    """Each video of the last weights beside the training clip that is nearest to it, nearest pair first."""
    last = max(one.row["step"] for one in measured)
    chosen = [
        one
        for one in measured
        if one.row["step"] == last
        and one.row["conditional"]
        and one.row["length"] == 1
        and one.row["weights"] in ("base", config.sample.weights[0])
        and one.nearest
    ]
    chosen = sorted(chosen, key=lambda one: one.nearest.distance if one.nearest else 0)[:MOST_NEAREST]
    if not chosen:
        path.unlink(missing_ok=True)
        return
    rows, labels = [], []
    for one in chosen:
        assert one.nearest
        near, first = library.rows[one.nearest.clip], one.nearest.offset
        last_pose = min(first + one.poses, len(library.thumbnails[one.nearest.clip])) - 1
        theirs = poses.pictures_of(near, [first, last_pose], _stride(data), config.sample.resolution)
        ours = sheets.pictures(one.row["path"], sheets.spread(sum(one.row["holds"]), 2))
        rows.append([*ours, *theirs])
        prompt = sheets.readable(one.row["prompt"], one.row["prompt_id"])
        copied = ": a copy by AuthPct's criterion" if one.values.get(scoring.measures.COPIES.name) == 1.0 else ""
        labels.append(f"{one.nearest.distance:.2f}{copied}, seed {one.row['seed']}: {prompt}")
    columns = ["sample, first", "sample, last", "nearest clip, first", "nearest clip, last"]
    subtitle = "distance of normalised thumbnails: 0 is a copy, 1.4 unrelated; nearest pair first"
    sheets.grid(path, rows, labels, columns, f"{run}: nearest training clips", subtitle)


def _say(run: str, scores: Mapping[str, Any], videos: int, windows: int) -> None:
    logger.info("evaluate %s: %d videos, %d held-out windows", run, videos, windows)
    best = {row["name"]: row for row in scores["ceiling"]}
    shown = [row for row in scores["metrics"] if row["conditional"] and row["length"] == 1]
    for name in ("frechet_distance", "smoothness", "noise", "copies"):
        values = [
            f"{'base' if row['step'] == 0 else row['step']} {row['value']:.3g}"
            for row in shown
            if row["name"] == name and row["value"] is not None
        ]
        held = best[name]["value"]
        end = "not measured" if held is None else f"{held:.3g}"
        logger.info("evaluate %s: %s: %s; held-out %s", run, name, ", ".join(values) or "not measured", end)
