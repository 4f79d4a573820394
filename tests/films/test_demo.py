"""The demo films: the same from the same seed, true to their truth file, and with every trouble that they promise."""

import csv
import hashlib
import itertools

import av
import cv2
import numpy as np
import pytest

from brickreel.films import demo, video
from brickreel.films.demo import footage, scenes
from brickreel.films.demo.bricks import brick
from brickreel.films.demo.draw import Renderer
from brickreel.films.demo.screenplay import FPS, Film, Shot, Title, screenplay


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Every film at a small size, with two short shots each."""
    folder = tmp_path_factory.mktemp("films")
    return folder, demo.render(folder, seed=3, scale=0.25, shots=2, poses=8, processes=1)


def digest(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_same_seed_gives_the_same_bytes_however_many_processes_draw(tmp_path):
    demo.render(tmp_path / "one", seed=5, films=[3, 5], scale=0.2, shots=2, poses=5, processes=1)
    demo.render(tmp_path / "two", seed=5, films=[3, 5], scale=0.2, shots=2, poses=5, processes=2)
    demo.render(tmp_path / "other", seed=6, films=[3, 5], scale=0.2, shots=2, poses=5, processes=1)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert digest(tmp_path / "one") != digest(tmp_path / "other")


def test_every_film_decodes_to_the_frames_and_times_of_the_truth(small):
    folder, truth = small
    for film in truth["films"]:
        times = [time_s for time_s, _ in video.stream(folder / film["path"])]
        assert len(times) == film["frames"] == len(film["poses"]) == len(film["time_s"])
        assert np.allclose(times, film["time_s"], atol=1e-3)


def test_shots_and_transitions_cover_every_frame_once(small):
    _, truth = small
    for film in truth["films"]:
        owner = np.zeros(film["frames"], int)
        for shot in film["shots"]:
            owner[shot["start"] : shot["end"]] += 1
            assert sum(shot["holds"]) == shot["end"] - shot["start"]
            starts = np.concatenate([[0], np.cumsum(shot["holds"])[:-1]]) + shot["start"]
            assert starts.tolist() == shot["pose_frames"]
        for transition in film["transitions"]:
            owner[transition["start"] : transition["end"]] += 1
            assert film["poses"][transition["start"] : transition["end"]] == [-1] * (
                transition["end"] - transition["start"]
            )
        assert (owner == 1).all()


def test_pictures_change_where_the_truth_says_and_nowhere_else(small):
    folder, truth = small
    held, posed = [], []
    for film in truth["films"]:
        if film["path"].startswith(("06", "10")):  # these have grain or boil in held frames
            continue
        frames = video.read(folder / film["path"]).astype(np.float32)
        for shot in film["shots"]:
            change = np.abs(np.diff(frames[shot["start"] : shot["end"]], axis=0)).max(axis=3)
            strong = np.percentile(change, 99.8, axis=(1, 2))
            poses = np.diff(film["poses"][shot["start"] : shot["end"]])
            assert set(poses.tolist()) <= {0, 1}
            held += strong[poses == 0].tolist()
            posed += strong[poses == 1].tolist()
    assert min(posed) > 8
    assert np.mean(np.array(held) < 8) > 0.97  # the encoder sharpens a held frame now and then


def test_a_cut_changes_more_than_any_pose(small):
    folder, truth = small
    film = truth["films"][1]
    frames = video.read(folder / film["path"]).astype(np.float32)
    change = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    cuts = [t["start"] - 1 for t in film["transitions"] if t["kind"] == "cut"]
    assert cuts
    assert change[cuts].min() > 2 * np.delete(change, cuts).max()


def test_the_truth_names_every_trouble(small):
    _, truth = small
    films = {film["path"]: film for film in truth["films"]}
    assert any("'" in name and '"' in name and " " in name and not name.isascii() for name in films)
    assert any(film["letterbox"] and film["crop"][1] > 0 for film in films.values())
    kinds = {transition["kind"] for film in films.values() for transition in film["transitions"]}
    assert kinds == {"cut", "dissolve"}
    assert any(shot["kind"] == "title" for film in films.values() for shot in film["shots"])
    assert [fault["fault"] for fault in truth["faults"]] == ["truncated", "no_video", "not_a_video"]


def test_letterbox_bars_are_black_and_the_picture_is_not(small):
    folder, truth = small
    film = next(film for film in truth["films"] if film["letterbox"])
    frames = video.read(folder / film["path"])
    _, top, _, bottom = film["crop"]
    assert frames[:, : top - 1].max() < 24
    assert frames[:, bottom + 1 :].max() < 24
    assert frames[:, top:bottom].mean() > 60


def test_the_film_of_variable_rate_keeps_time_by_its_time_stamps(small):
    _, truth = small
    film = next(film for film in truth["films"] if film["variable_rate"])
    steps = set(np.round(np.diff(film["time_s"]) * FPS).astype(int).tolist())
    assert steps == {1, 2}
    scenes = [shot for shot in film["shots"] if shot["kind"] == "scene"]
    assert all(abs(shot["pose_rate"] - 12) < 1 for shot in scenes)


def test_broken_files_cannot_be_read_as_films(small):
    folder, _ = small
    for name in ("90-cut-off.mp4", "91-only-sound.mp4", "92-notes.mp4"):
        with pytest.raises(ValueError, match=name):
            list(video.stream(folder / name))
    with av.open(str(folder / "91-only-sound.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["audio"]
        assert sum(frame.samples for frame in container.decode(audio=0)) > 22050


def test_sources_list_every_file_with_its_licence(small):
    folder, truth = small
    with (folder / "sources.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == [film["path"] for film in truth["films"]] + [
        fault["path"] for fault in truth["faults"]
    ]
    assert all((folder / row["path"]).is_file() and row["licence"] == "CC0-1.0" for row in rows)


def test_the_whole_demo_has_enough_clips_minutes_and_a_scene_in_two_films():
    films = screenplay(0)
    shots = [part for film in films for part in film.parts if isinstance(part, Shot)]
    assert len(films) >= 8
    assert all(shot.poses >= 15 for shot in shots)
    assert 60 <= len(shots) <= 90
    assert {shot.cadence for shot in shots} == {"ones", "twos", "threes", "mixed"}
    assert any(isinstance(part, Title) for film in films for part in film.parts)
    homes = {shot.seed: {film.name for film in films if shot in film.parts} for shot in shots}
    assert sum(len(names) == 2 for names in homes.values()) == 1
    rates = {"ones": 1, "twos": 2, "threes": 3, "mixed": 14 / 6}
    seconds = sum(shot.poses * rates[shot.cadence] for shot in shots) / FPS
    assert 180 <= seconds <= 300


def test_too_small_a_size_or_an_unknown_film_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="scale is"):
        demo.render(tmp_path, scale=0.01)
    with pytest.raises(ValueError, match="demo films"):
        demo.render(tmp_path, films=[99])


@pytest.mark.parametrize("poses", [8, 31, 45])
def test_a_brick_is_seen_to_leave_at_every_pose(poses):
    scene = scenes.SCENES["unbuilding"](np.random.default_rng(5), poses, scenes.SETS[0])
    camera = scenes.camera_path(scene, np.random.default_rng(5), poses, "static", 0.0)
    renderer = Renderer(320, 180)
    pictures = [renderer.picture(scene.parts(pose), camera[pose], scenes.SETS[0]) for pose in range(poses)]
    changed = [(cv2.absdiff(*pair).max(axis=2) > 12).sum() for pair in itertools.pairwise(pictures)]
    assert min(changed) > 100


def test_a_pose_that_changes_nothing_in_the_picture_is_no_pose(monkeypatch):
    still = scenes.Scene("A brick stands.", lambda pose: [brick("red", (0, 0, 0.5 * (pose > 3)), 2, 2)], (0, 0, 1), 8)
    monkeypatch.setitem(scenes.SCENES, "tower", lambda rng, poses, place: still)
    film = Film("film.mp4", "Film", (Shot("tower", 0, 1, 6, "twos"),))
    truth = footage.Truth()
    list(footage.frames(film, 64, 36, truth))
    assert truth.shots[0]["pose_frames"] == [0, 8]
    assert truth.shots[0]["holds"] == [8, 4]
