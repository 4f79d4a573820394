"""Clips from columns of signals: lengths in poses, nothing of a neighbour, every pose in exactly one clip."""

import numpy as np
import pytest

from brickreel import config
from brickreel.config import Curate
from brickreel.films import candidates, filters

SETTINGS = Curate(min_poses=5, max_poses=20)


def frames(new, cuts=(), blends=(), luma=None, times=None, film=None, crop=None):
    count = len(new)
    flags = {name: np.isin(np.arange(count), places) for name, places in (("cut", cuts), ("blend", blends))}
    plain = {name: np.full(count, 0.5, np.float32) for name in (*candidates.MEANS, *candidates.INNER_MEANS)}
    plain |= {"hold_score": np.full(count, 30, np.float32), "text_score": np.zeros(count, np.float32)}
    plain["luma"] = np.full(count, 0.5, np.float32) if luma is None else np.asarray(luma, np.float32)
    return candidates.Frames(
        film=np.zeros(count, np.int64) if film is None else np.asarray(film),
        frame=np.arange(count) if film is None else np.concatenate([np.arange(n) for n in np.bincount(film)]),
        time_s=np.arange(count) / 24 if times is None else np.asarray(times),
        new_pose=np.asarray(new, bool),
        crop=np.tile([0, 0, 640, 360], (count, 1)).astype(np.int32) if crop is None else crop,
        phash=np.zeros(count, np.uint64),
        values=plain,
        **flags,
    )


def films(count=1, varies=False):
    return candidates.Films(*(np.full(count, value) for value in (24.0, varies, 640, 360)))


def spans(clips):
    return list(zip(clips.start.tolist(), clips.end.tolist(), strict=True))


def test_a_clip_ends_before_the_next_shot_and_keeps_a_frame_away_from_a_dissolve():
    clips = candidates.find(frames(np.arange(60) % 2 == 0, cuts=[20], blends=range(40, 46)), films(), SETTINGS)
    assert spans(clips) == [(0, 20), (20, 39), (47, 60)]
    assert clips.pose_frames.tolist() == [*range(0, 40, 2), 47, *range(48, 60, 2)]


def test_a_fade_at_the_end_of_a_film_takes_nothing_from_the_next():
    found = frames([True] * 30, blends=range(10, 12), film=[0] * 12 + [1] * 18)
    assert spans(candidates.find(found, films(2), SETTINGS)) == [(0, 9), (0, 18)]


def test_a_long_shot_is_split_and_nothing_is_lost():
    clips = candidates.find(frames(np.arange(100) % 2 == 0), films(), SETTINGS)
    assert spans(clips) == [(0, 34), (34, 68), (68, 100)]
    assert clips.pose_frames.tolist() == list(range(0, 100, 2))
    assert clips.holds.sum() == 100
    assert clips.poses.max() <= 20


@pytest.mark.parametrize(
    ("poses", "lengths"),
    [(48, [48]), (49, [48, 1]), (63, [48, 15]), (64, [32, 32]), (95, [48, 47]), (96, [48, 48]), (97, [33, 32, 32])],
)
def test_no_clip_is_too_short_but_for_the_rest_that_must_be(poses, lengths):
    settings = Curate(min_poses=32, max_poses=48)
    clips = candidates.find(frames([True] * poses), films(), settings)
    assert clips.poses.tolist() == lengths
    assert filters.reasons(clips, settings).tolist() == ["" if length >= 32 else "too_short" for length in lengths]


def test_lengths_that_no_clip_can_have_are_refused():
    with pytest.raises(ValueError, match="min_poses, 300, is more than max_poses, 200"):
        config.load({"curate": {"min_poses": 300}})


def test_films_do_not_run_into_each_other():
    clips = candidates.find(frames([True] * 30, film=[0] * 12 + [1] * 18), films(2), SETTINGS)
    assert list(zip(clips.film.tolist(), *zip(*spans(clips), strict=True), strict=True)) == [(0, 0, 12), (1, 0, 18)]


def test_black_frames_are_a_clip_of_their_own_with_its_reason():
    clips = candidates.find(frames([True] * 40, luma=[0.5] * 20 + [0.0] * 20), films(), SETTINGS)
    assert spans(clips) == [(0, 20), (20, 40)]
    assert filters.reasons(clips, SETTINGS).tolist() == ["", "black"]


def test_a_freeze_frame_of_ordinary_footage_is_kept_frame_by_frame():
    new = np.array([True] * 40 + [False] * 39)
    clips = candidates.find(frames(new), films(), SETTINGS)
    assert clips.holds.max() == 1
    assert clips.poses.sum() == 79


def test_timestamps_tell_holds_where_the_rate_varies():
    clips = candidates.find(frames([True] * 10, times=np.arange(10) / 12), films(varies=True), SETTINGS)
    assert clips.holds.tolist()[:-1] == [2] * 9
    assert clips.cadence.tolist() == ["twos"]


@pytest.mark.parametrize("varies", [True, False])
def test_a_gap_ends_a_clip_and_is_nobodys_hold(varies):
    times = np.arange(20) / 24 + 3600 * (np.arange(20) >= 12)
    clips = candidates.find(frames([True] * 20, times=times), films(varies=varies), SETTINGS)
    assert spans(clips) == [(0, 12), (12, 20)]
    assert clips.holds.tolist() == [1] * 20
    assert clips.pose_rate.tolist() == [24, 24]


def test_the_steps_of_a_slow_film_are_no_gaps():
    slow = films()._replace(fps=np.array([0.5]))
    assert spans(candidates.find(frames([True] * 20, times=np.arange(20) * 2), slow, SETTINGS)) == [(0, 20)]


def test_a_film_that_follows_another_is_no_gap():
    times = [*(1000 + np.arange(10) / 24), *(5000 + np.arange(10) / 24)]
    found = frames([True] * 20, times=times, film=[0] * 10 + [1] * 10)
    clips = candidates.find(found, films(2, varies=True), SETTINGS)
    assert clips.holds.tolist() == [1] * 20


def test_bars_are_cropped_to_what_every_pose_shows():
    crop = np.tile([0, 43, 640, 317], (12, 1)).astype(np.int32)
    crop[3] = [0, 45, 640, 317]
    assert candidates.find(frames([True] * 12, crop=crop), films(), SETTINGS).crop.tolist() == [[0, 44, 640, 316]]


def test_the_still_is_the_sharpest_pose_of_the_middle():
    given = frames([True] * 12)
    given.values["blur"][[1, 6]] = [0.1, 0.2]
    assert candidates.find(given, films(), SETTINGS).still.tolist() == [6]


@pytest.mark.parametrize(
    ("signal", "value", "reason"),
    [
        ("luma", 0.05, "too_dark"),
        ("contrast", 0.01, "blank"),
        ("blur", 0.95, "blurred"),
        ("text_score", 0.2, "on_screen_text"),
        ("hold_score", 1.0, "static"),
    ],
)
def test_every_threshold_has_its_reason(signal, value, reason):
    given = frames([True] * 12)
    given.values[signal][:] = value
    assert filters.reasons(candidates.find(given, films(), SETTINGS), SETTINGS).tolist() == [reason]


def test_text_that_stands_still_is_a_title_card_and_few_poses_are_too_short():
    given = frames([True] + [False] * 29 + [True] * 4, cuts=[30])
    given.values["hold_score"][:30] = 0
    given.values["text_score"][:30] = 0.3
    assert filters.reasons(candidates.find(given, films(), SETTINGS), SETTINGS).tolist() == ["title_card", "too_short"]


def test_no_frames_give_no_clips():
    assert len(candidates.find(frames(np.zeros(0, bool)), films(), SETTINGS).film) == 0
