"""What `brickreel inspect` says of one film."""

import json

import pytest
from click.testing import CliRunner

from brickreel import config
from brickreel.films import inspect
from brickreel.films.inspect import command
from films import synth


def test_shots_poses_and_clips_as_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    film = synth.Film().add(synth.scene(1, 16), [2] * 16).add(synth.scene(2, 6), [3] * 6)
    path = film.write(tmp_path / "a film's cut.mp4")
    found = json.loads(CliRunner().invoke(command, [str(path), "--json"]).output)
    assert (found["film"], found["frames"], found["fps"]) == (str(path), 50, 24.0)
    assert found["shots"] == [
        {"start": 0, "end": 32, "transition_in": "start", "label": "twos", "pose_rate": 12.0, "poses": film.poses[:16]},
        {"start": 32, "end": 50, "transition_in": "cut", "label": "threes", "pose_rate": 8.0, "poses": film.poses[16:]},
    ]
    assert found["clips"] == [
        {"start": 0, "end": 32, "poses": 16, "outcome": "ok", "reason": ""},
        {"start": 32, "end": 50, "poses": 6, "outcome": "dropped", "reason": "too_short"},
    ]
    words = CliRunner().invoke(command, [str(path)]).output
    assert "threes" in words
    assert "too_short" in words


def test_no_film_is_one_sentence_and_a_status(tmp_path):
    assert CliRunner().invoke(command, [str(tmp_path / "none.mp4")]).exit_code == 1
    settings = config.load({})
    with pytest.raises(FileNotFoundError, match="it is a folder"):
        inspect.inspect(tmp_path, settings)
    (tmp_path / "notes.mp4").write_text("no film")
    with pytest.raises(ValueError, match=r"notes\.mp4 is not a video file"):
        inspect.inspect(tmp_path / "notes.mp4", settings)
