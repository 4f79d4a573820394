"""Cuts as frames, dissolves as ranges, and neither where there is none."""

import numpy as np
import pytest

from brickreel.films import shots, signals, transnet
from films import synth


def transitions(film, tmp_path, network="off"):
    return signals.read(film.write(tmp_path / "film.mp4"), network=network)


def test_cuts_are_found_at_their_frame_whatever_the_timing(tmp_path):
    film = synth.Film()
    for seed, shot_on in enumerate(["ones", "twos", "threes", "mixed"]):
        film.add(synth.scene(seed, 14), synth.holds(shot_on, 14))
    result = transitions(film, tmp_path)
    assert [(shot.start, shot.end) for shot in result.shots] == film.shots
    assert [shot.transition_in for shot in result.shots] == ["start", "cut", "cut", "cut"]


def test_flicker_and_a_moving_puppet_are_no_cuts(tmp_path):
    film = synth.Film().add(synth.flicker(synth.scene(1, 40, step=12), 0.1), [1] * 40)
    assert len(transitions(film, tmp_path).shots) == 1


def test_frames_of_a_dissolve_belong_to_no_shot(tmp_path):
    film = synth.Film().add(synth.scene(1, 20), [2] * 20)
    film.frames += synth.dissolve(film.frames[-1], synth.scene(2, 1)[0], 10)
    film.add(synth.scene(2, 20), [2] * 20)
    result = transitions(film, tmp_path)
    first, second = result.shots
    assert second.transition_in == "dissolve"
    assert 37 <= first.end <= 40
    assert 50 <= second.start <= 54


def test_poses_that_are_held_between_two_others_are_no_dissolve():
    first, last = (np.random.default_rng(seed).integers(40, 220, (27, 48, 3)).astype(np.float32) for seed in (1, 2))
    shares = np.linspace(0, 1, 14)[:, None, None, None]
    mixed = (first * (1 - shares) + last * shares).astype(np.uint8)
    still = [np.repeat(mixed[[place]], 20, axis=0) for place in (0, -1)]
    dissolve = np.concatenate([still[0], mixed, still[1]])
    assert [kind for kind in set(shots.blends(dissolve)[0].tolist()) if kind] == [1]
    on_threes = np.concatenate([still[0], np.repeat(mixed[[0, 4, 9, 13]], 3, axis=0), still[1]])
    assert not shots.blends(on_threes)[0].any()


def test_holds_beside_a_blend_are_no_part_of_it_and_a_repeated_frame_inside_ends_nothing():
    rng = np.random.default_rng(1)
    each = rng.integers(40, 220, (30, 27, 48, 3), dtype=np.uint8)
    held = np.repeat(np.arange(8), 3)
    blend = [8, 9, 10, 11, 11, 12, 13, 14, 15, 16]
    shown = each[[*held, *blend, *np.repeat(np.arange(17, 25), 3)]]
    kinds = np.zeros(len(shown), np.int8)
    kinds[21:40] = 1
    assert shots.runs(shots.trimmed(kinds, shown) > 0) == [(24, 34)]


def test_letterboxed_scenes_are_told_apart(tmp_path):
    film = synth.Film()
    for seed in (1, 2):
        film.add(synth.scene(seed, 16), [1] * 16)
    for frame in film.frames:
        frame[:36], frame[-36:] = 0, 0
    assert [shot.start for shot in transitions(film, tmp_path).shots] == [0, 16]


@pytest.mark.slow
def test_the_network_settles_what_is_doubtful(tmp_path):
    film = synth.Film().add(synth.scene(1, 20), [1] * 20).add(synth.scene(2, 20), [1] * 20)
    assert [shot.start for shot in transitions(film, tmp_path, "everywhere").shots] == [0, 20]


def test_runs_of_flags():
    assert shots.runs(np.array([True, False, True, True])) == [(0, 1), (2, 4)]
    assert shots.runs(np.zeros(0, bool)) == []


def test_the_network_does_not_turn_a_cut_into_a_blend():
    many = np.zeros(40, np.float32)
    many[20:22] = 0.9
    nothing = np.zeros(40, np.int8)
    assert not shots.judge_blends(nothing, np.ones(40, bool), many).any()


def test_the_network_moves_the_ends_of_a_blend():
    many = np.zeros(40, np.float32)
    many[20:30] = 0.9
    kinds = np.zeros(40, np.int8)
    kinds[18:36] = 2
    judged = shots.judge_blends(kinds, kinds > 0, many)
    assert shots.runs(judged == 2) == [(20, 30)]


@pytest.mark.slow
@pytest.mark.parametrize("gpu", [False, True])
def test_auto_asks_the_network_everywhere_on_a_gpu_and_of_the_doubtful_frames_elsewhere(tmp_path, monkeypatch, gpu):
    film = synth.Film().add(synth.scene(1, 30), [1] * 30).add(synth.scene(2, 30), [1] * 30)
    asked, ask = [], transnet.probabilities

    def noted(pictures, frames):
        asked.append(frames)
        return ask(pictures, frames)

    monkeypatch.setattr(transnet, "probabilities", noted)
    transnet.network()  # stays where it is, whatever the next line says
    monkeypatch.setattr(transnet, "on_gpu", lambda: gpu)
    assert [shot.start for shot in transitions(film, tmp_path, "auto").shots] == [0, 30]
    assert asked[0].all() == gpu
