"""Why clips are dropped: one table of reasons, tested in this order, each with the setting that moves it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from brickreel.config import Curate
from brickreel.films.candidates import Clips


class Filter(NamedTuple):
    """A reason to drop a clip."""

    reason: str
    setting: str
    """Name in `curate:`."""
    score: str
    """Column of clips.parquet that it looks at."""
    words: str
    """For the audit page."""
    drops: Callable[[Clips, Curate], NDArray[np.bool_]]


def _still(clips: Clips, settings: Curate) -> NDArray[np.bool_]:
    return clips.values["hold_score"] < settings.min_change


def _black(clips: Clips, settings: Curate) -> NDArray[np.bool_]:
    return clips.black


def _blank(clips: Clips, settings: Curate) -> NDArray[np.bool_]:
    return clips.values["contrast"] < settings.min_contrast


def _title_card(clips: Clips, settings: Curate) -> NDArray[np.bool_]:
    return _still(clips, settings) & (clips.values["text_score"] > settings.max_text)


def _static(clips: Clips, settings: Curate) -> NDArray[np.bool_]:
    return _still(clips, settings) & (clips.end - clips.start >= settings.min_poses)


def _too_short(clips: Clips, settings: Curate) -> NDArray[np.bool_]:
    return clips.poses < settings.min_poses


def _too_dark(clips: Clips, settings: Curate) -> NDArray[np.bool_]:
    return clips.values["luma"] < settings.dark_luma


def _blurred(clips: Clips, settings: Curate) -> NDArray[np.bool_]:
    return clips.values["blur"] > settings.max_blur


def _text(clips: Clips, settings: Curate) -> NDArray[np.bool_]:
    return clips.values["text_score"] > settings.max_text


FILTERS = (
    Filter("black", "min_luma", "luma", "every frame is black", _black),
    Filter("blank", "min_contrast", "contrast", "there is nothing to see", _blank),
    Filter("title_card", "max_text", "text_score", "text on a picture in which nothing moves", _title_card),
    Filter("static", "min_change", "change", "nothing moves from pose to pose", _static),
    Filter("too_short", "min_poses", "pose_frames", "has fewer poses than a clip needs", _too_short),
    Filter("too_dark", "dark_luma", "luma", "is too dark to see", _too_dark),
    Filter("blurred", "max_blur", "blur", "is out of focus", _blurred),
    Filter("on_screen_text", "max_text", "text_score", "text covers the picture", _text),
)

# Decided beside the table: these look at more than one clip.
DUPLICATE, WITHDRAWN = "near_duplicate", "withdrawn"
OTHER_REASONS = {
    DUPLICATE: ("duplicate_bits", "a clip of another film shows the same"),
    WITHDRAWN: ("withdrawn", "the film was taken out of the dataset"),
}


def reasons(clips: Clips, settings: Curate) -> NDArray[np.str_]:
    """[C]: the first reason to drop each clip, "" for those that stay."""
    result = np.full(len(clips.film), "", dtype="<U16")
    for one in FILTERS:
        hit = one.drops(clips, settings) & (result == "")
        result[hit] = one.reason
    return result
