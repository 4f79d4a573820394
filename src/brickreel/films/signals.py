"""Every signal of a film, read off one decode pass in bounded memory."""

import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from brickreel.films import cadence, decode, isolated, measure, shots

Network = Literal["off", "candidates", "everywhere", "auto"]

# Frames between two looks for text and for black bars: both stay for many frames.
TEXT_PERIOD = BARS_PERIOD = 12
# Frames between two thumbnails, which the audit page shows: every clip of at least 15 poses has one.
THUMBNAIL_PERIOD = 12
THUMBNAIL_HEIGHT = 90
# Thumbnails of a film, about 60 MB: three hours of film. Longer ones have them further apart.
MOST_THUMBNAILS = 20_000
# Frames whose pictures are held at a time: 5 MB.
CHUNK = 1200


@dataclass
class Signals:
    """One value per frame and signal; see the table "signals" for the meaning of each.

    Arrays and not lists: a long film has millions of values, which as objects would take sixteen times the memory.
    """

    time_s: "array[float]" = field(default_factory=lambda: array("d"))
    hold_score: "array[float]" = field(default_factory=lambda: array("f"))
    motion: "array[float]" = field(default_factory=lambda: array("f"))
    flicker: "array[float]" = field(default_factory=lambda: array("f"))
    luma: "array[float]" = field(default_factory=lambda: array("f"))
    contrast: "array[float]" = field(default_factory=lambda: array("f"))
    blur: "array[float]" = field(default_factory=lambda: array("f"))
    text_score: "array[float]" = field(default_factory=lambda: array("f"))
    phash: "array[int]" = field(default_factory=lambda: array("Q"))
    crop: list[tuple[int, int, int, int]] = field(default_factory=list)
    thumbnail: list[bytes | None] = field(default_factory=list)
    thumbnail_period: int = THUMBNAIL_PERIOD
    cut_score: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    transition: list[str] = field(default_factory=list)
    new_pose: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def __len__(self) -> int:
        return len(self.time_s)

    @property
    def shots(self) -> list[shots.Shot]:
        """The film's shots."""
        return shots.shots(self.transition)


def read(
    path: str | os.PathLike[str],
    height: int = 180,
    network: Network = "auto",
    threads: int = 1,
    watch: Callable[[int], None] | None = None,
) -> Signals:
    """Decode a film once and measure everything. `watch` is told the number of frames now and then.

    Raises ValueError when the film cannot be decoded.
    """
    cv2.setNumThreads(threads)
    signals, boundaries, pulse = Signals(), _Boundaries(network), isolated.Pulse(watch)
    before: NDArray[np.float32] | None = None
    for picture in decode.pictures(path, height, threads):
        after = picture.luma.astype(np.float32)
        score, motion, flicker = (0.0, 0.0, 0.0) if before is None else _compare(before, after)
        before = after
        _append(signals, picture, score, motion, flicker)
        boundaries.add(_tiny(picture))
        pulse(picture.frame)
    _decide(signals, *boundaries.finish())
    return signals


def _compare(before: NDArray[np.float32], after: NDArray[np.float32]) -> tuple[float, float, float]:
    if before.shape != after.shape:
        # The size changes in the middle of the file: nothing is held across that.
        return 255.0, 1.0, 0.0
    return measure.compare(before, after)


def _append(signals: Signals, picture: decode.Picture, score: float, motion: float, flicker: float) -> None:
    first = not signals.time_s
    signals.time_s.append(picture.time_s)
    signals.hold_score.append(score)
    signals.motion.append(motion)
    signals.flicker.append(flicker)
    mean, deviation = cv2.meanStdDev(picture.luma)
    black, levels = (0, 255) if picture.full_range else (16, 219)
    signals.luma.append(min(1.0, max(0.0, (float(mean[0, 0]) - black) / levels)))
    signals.contrast.append(float(deviation[0, 0]) / levels)
    # What is read off one picture is the same for its repetitions.
    same = not first and score < cadence.DUPLICATE and picture.frame % THUMBNAIL_PERIOD
    signals.blur.append(signals.blur[-1] if same else measure.sharpness_lost(picture.luma))
    signals.phash.append(signals.phash[-1] if same else measure.perceptual_hash(decode.halved(picture.luma, 32, 32)))
    look = picture.frame % TEXT_PERIOD == 0
    signals.text_score.append(measure.text_share(picture.luma) if look else signals.text_score[-1])
    look = picture.frame % BARS_PERIOD == 0
    signals.crop.append(measure.black_bars(picture.full) if look else signals.crop[-1])
    signals.thumbnail.append(None if picture.frame % signals.thumbnail_period else _thumbnail(picture))
    if picture.frame == MOST_THUMBNAILS * signals.thumbnail_period:
        for frame in range(signals.thumbnail_period, len(signals), 2 * signals.thumbnail_period):
            signals.thumbnail[frame] = None
        signals.thumbnail_period *= 2


def _tiny(picture: decode.Picture) -> NDArray[np.uint8]:
    size = shots.SIZE[::-1]
    parts = [decode.halved(part, *size) for part in (picture.luma, *picture.chroma)]
    return np.asarray(cv2.merge([cv2.resize(part, size, interpolation=cv2.INTER_LINEAR) for part in parts]), np.uint8)


def _thumbnail(picture: decode.Picture) -> bytes:
    rows, columns = picture.luma.shape
    size = (max(2, round(columns * THUMBNAIL_HEIGHT / rows)), THUMBNAIL_HEIGHT)
    planes = [cv2.resize(part, size, interpolation=cv2.INTER_AREA) for part in (picture.luma, *picture.chroma)]
    colour = cv2.cvtColor(np.stack(planes, axis=-1), cv2.COLOR_YUV2BGR)
    done, encoded = cv2.imencode(".jpg", colour, [cv2.IMWRITE_JPEG_QUALITY, 75])
    assert done
    return encoded.tobytes()


class _Boundaries:
    """Shot signals of a stream of small pictures, chunk by chunk with context on both sides."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.held: list[NDArray[np.uint8]] = []
        self.context = 0
        """Pictures at the beginning of `held` whose results are already out."""
        self.scores: list[NDArray[np.float32]] = []
        self.kinds: list[NDArray[np.int8]] = []

    def add(self, picture: NDArray[np.uint8]) -> None:
        self.held.append(picture)
        if len(self.held) >= CHUNK:
            self._flush(len(self.held) - shots.CONTEXT)

    def finish(self) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        self._flush(len(self.held))
        return np.concatenate(self.scores), np.concatenate(self.kinds)

    def _flush(self, end: int) -> None:
        pictures = np.stack(self.held)
        scores = shots.cut_scores(shots.change(pictures))
        kinds, doubtful = shots.blends(pictures)
        if self.network != "off":
            scores, kinds = self._ask(pictures, scores, kinds, doubtful)
        kinds = shots.trimmed(kinds, pictures)
        self.scores.append(scores[self.context : end])
        self.kinds.append(kinds[self.context : end])
        keep = max(0, end - shots.CONTEXT)
        self.held, self.context = self.held[keep:], end - keep

    def _ask(
        self,
        pictures: NDArray[np.uint8],
        scores: NDArray[np.float32],
        kinds: NDArray[np.int8],
        doubtful: NDArray[np.bool_],
    ) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """Let the network judge the candidates, or everything."""
        from brickreel.films import transnet

        everywhere = self.network == "everywhere" or (self.network == "auto" and transnet.on_gpu())
        unsure = (scores > shots.CANDIDATE) & (scores < shots.CERTAIN)
        asked = unsure | doubtful | (kinds > 0) | everywhere
        cut, many = transnet.probabilities(pictures, asked).T
        judged = (1 - shots.NETWORK_SHARE) * scores + shots.NETWORK_SHARE * cut
        scores = np.where(unsure | (everywhere & (scores < shots.CERTAIN)), judged, scores).astype(np.float32)
        return scores, shots.judge_blends(kinds, doubtful | everywhere, many)


def _decide(signals: Signals, cut_scores: NDArray[np.float32], kinds: NDArray[np.int8]) -> None:
    signals.cut_score = cut_scores
    signals.transition = shots.transitions(cut_scores, kinds)
    signals.new_pose = np.ones(len(signals), np.bool_)
    scores, flicker = np.asarray(signals.hold_score, np.float32), np.asarray(signals.flicker, np.float32)
    for shot in signals.shots:
        inside = slice(shot.start, shot.end)
        signals.new_pose[inside] = cadence.new_poses(scores[inside], flicker[inside])
        _look_back(signals.text_score, shot, TEXT_PERIOD)
        _look_back(signals.crop, shot, BARS_PERIOD)


def _look_back(values: Any, shot: shots.Shot, period: int) -> None:
    """The first look into a shot holds for its frames before, which would else carry what the shot before showed."""
    look = -(-shot.start // period) * period
    if look < shot.end:
        values[shot.start : look] = values[look : look + 1] * (look - shot.start)
