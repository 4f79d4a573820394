"""Which shape a clip is shown in: resolution, aspect ratio and number of frames.

Two assignments: `opensora-1.1` repeats the origin's, draw by draw; `full` wastes nothing: a clip that is too short for
a length goes to the next shorter one, and a share below 1 moves clips on instead of losing them. Loads no torch.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from brickreel.config import RunData

# The origin does not show a clip at a resolution that has more than 1 / 0.8 of its pixels.
LEAST_PIXELS = 0.8
# What the origin tells the model as the rate of a still image.
STILL_FPS = 120.0
# Beside the origin's tables: the demo's size.
_SMALL = {"64p": {"pixels": 4096, "ratios": {"1.00": [64, 64]}}, "32p": {"pixels": 1024, "ratios": {"1.00": [32, 32]}}}


@cache
def aspect_ratios() -> Mapping[str, Mapping]:
    """Resolution name -> nominal `pixels` and `ratios` (height / width as text -> [height, width] in pixels)."""
    text = (resources.files("brickreel.training") / "aspect_ratios.json").read_text(encoding="utf-8")
    return {**json.loads(text), **_SMALL}


@dataclass(frozen=True)
class Material:
    """What a clip offers: its length in poses or frames of the film, and its size in pixels."""

    key: str
    units: int
    height: int
    width: int
    row: int = 0
    """Row number in the dataset's table: the origin's draws depend on it."""

    @classmethod
    def of(cls, clip: Mapping[str, Any], data: RunData, row: int = 0) -> "Material":
        """What a row of the cut index offers under these settings."""
        units = 1
        if clip["kind"] != "still":
            holds = clip["holds"]
            units = clip["frames"] if holds is None else len(holds) if data.time == "poses" else sum(holds)
        return cls(clip["clip_id"], units, clip["height"], clip["width"], row)


@dataclass(frozen=True)
class Shape:
    """One bucket's shape. `height` and `width` in pixels."""

    resolution: str
    ratio: str
    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Verdict:
    """The shape a clip is shown in, or the reason why it is not shown."""

    shape: Shape | None
    reason: str = ""


def assign(clip: Material, data: RunData, seed: int | None = None) -> Verdict:
    """The shape of a clip under a run's data settings; `seed` replaces `share_seed`.

    Reasons: `too_small`, `too_short`, `still_not_wanted`, `share` (lost by a share below 1; never under `full`).
    """
    check_buckets(data)
    seed = data.share_seed if seed is None else seed
    found = _opensora(clip, data, seed) if data.assignment == "opensora-1.1" else _full(clip, data, seed)
    return Verdict(_shape(clip, *found)) if isinstance(found, tuple) else Verdict(None, found)


def check_buckets(data: RunData) -> None:
    """Raise ValueError when a resolution has no table."""
    unknown = sorted(set(data.buckets) - set(aspect_ratios()))
    if unknown:
        raise ValueError(f"data.buckets: unknown resolutions {unknown}: choose from {sorted(aspect_ratios())}")


def sorted_buckets(data: RunData) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """Resolutions from large to small, each with (frames, share) from long to short."""
    for name in sorted(data.buckets, key=lambda name: aspect_ratios()[name]["pixels"], reverse=True):
        yield name, [(frames, share) for frames, (share, _) in sorted(data.buckets[name].items(), reverse=True)]


def _opensora(clip: Material, data: RunData, seed: int) -> tuple[str, int] | str:
    """Open-Sora 1.1's rule, draws included: a missed draw sends a clip to the next resolution, not to fewer frames."""
    lengths = {(name, frames) for name, row in sorted_buckets(data) for frames, _ in row}
    buckets = sum(len(aspect_ratios()[name]["ratios"]) for name, _ in lengths)
    index, reason = 0, "too_small"
    for name, row in sorted_buckets(data):
        places = {frames: index + place for place, (frames, _) in enumerate(row)}
        index += len(row)
        if clip.height * clip.width < LEAST_PIXELS * aspect_ratios()[name]["pixels"]:
            continue
        fitting = [(frames, share) for frames, share in row if _fits_strictly(clip, frames, data.stride)]
        if not fitting:
            reason = "still_not_wanted" if clip.units == 1 else "too_short"
            continue
        frames, share = fitting[0]
        draw = np.random.default_rng(seed + clip.row * buckets + places[frames]).random()
        if (share >= 1 and frames > 1) or draw < share:
            return name, frames
        reason = "share"
    return reason


def _fits_strictly(clip: Material, frames: int, stride: int) -> bool:
    if clip.units == 1 or frames == 1:
        return clip.units == frames
    return clip.units > frames * stride


def _full(clip: Material, data: RunData, seed: int) -> tuple[str, int] | str:
    """Largest resolution, longest length that fits; a missed share moves on, and the last that fits keeps the clip."""
    last: tuple[str, int] | None = None
    large_enough = False
    for name, row in sorted_buckets(data):
        if clip.height * clip.width < LEAST_PIXELS * aspect_ratios()[name]["pixels"]:
            continue
        large_enough = True
        for frames, share in row:
            if not _fits(clip, frames, data.stride) or share == 0:
                continue
            if _draw(seed, clip.key, name, frames) < share:
                return name, frames
            last = name, frames
    if last:
        return last
    if not large_enough:
        return "too_small"
    return "still_not_wanted" if clip.units == 1 else "too_short"


def _fits(clip: Material, frames: int, stride: int) -> bool:
    if clip.units == 1 or frames == 1:
        return clip.units == frames
    return clip.units >= span(frames, stride)


def span(frames: int, stride: int) -> int:
    """Poses or frames from the first shown to the last, both included."""
    return (frames - 1) * stride + 1


def _draw(seed: int, key: str, resolution: str, frames: int) -> float:
    digest = hashlib.blake2b(f"{seed}/{key}/{resolution}/{frames}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _shape(clip: Material, resolution: str, frames: int) -> Shape:
    ratios = aspect_ratios()[resolution]["ratios"]
    ratio = min(ratios, key=lambda key: abs(float(key) - clip.height / clip.width))
    height, width = ratios[ratio]
    return Shape(resolution, ratio, frames, height, width)
