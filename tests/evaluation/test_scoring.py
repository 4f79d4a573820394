import importlib

import numpy as np
import pytest
import torch

from brickreel.config import Evaluate
from brickreel.evaluation import features, scoring
from brickreel.evaluation.poses import Shown
from brickreel.evaluation.scoring import Library, Measured, Scorer


class Network:
    """Stands in for one from a folder; knows where it was put and what it was asked."""

    made: list["Network"]

    def __init__(self, folder, device):
        self.folder, self.device, self.calls = folder, device, []
        self.made.append(self)

    def features(self, videos):
        self.calls.append(len(videos))
        return [np.ones((len(video), 8), np.float32) for video in videos]

    def agreements(self, videos, texts):
        self.calls.append(list(texts))
        return [len(text) / 100 for text in texts]


@pytest.fixture
def networks(monkeypatch):
    monkeypatch.setattr(Network, "made", [], raising=False)
    for kind in ("ClipModel", "PictureModel", "VideoModel"):
        monkeypatch.setattr(features, kind, Network)
    return Network.made


def settings(tmp_path, **changes) -> Evaluate:
    return Evaluate(**{"dinov2": tmp_path / "dinov2", "clip": tmp_path / "clip"} | changes)


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (1, "cuda:0"), (4, "cuda:0")])
def test_all_networks_are_on_the_gpu_where_there_is_one(networks, tmp_path, monkeypatch, gpus, device):
    importlib.import_module("diffusers.models.modeling_utils")  # what it imports looks for a GPU itself
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    given = []
    monkeypatch.setattr(features, "transnetv2", lambda videos, device: given.append(device) or [None] * len(videos))
    scorer = Scorer(settings(tmp_path), Library())
    assert scorer.network([]) == []
    assert given == [scorer.device] == [torch.device(device)]
    assert [network.device for network in networks] == [torch.device(device)] * 2
    Scorer(settings(tmp_path, features="videomae", videomae=tmp_path / "videomae"), Library())
    assert {network.device for network in networks} == {torch.device(device)}


def test_a_device_that_is_given_is_taken(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    scorer = Scorer(settings(tmp_path), Library(), torch.device("cpu"))
    assert scorer.device == networks[0].device == networks[1].device == torch.device("cpu")


def windows(films: dict[str, int], alike: float = 0.5) -> list[Measured]:
    """One window per clip, those of a film about the film's own value."""
    rng = np.random.default_rng(1)
    found = []
    for film, clips in films.items():
        centre = rng.normal()
        for number in range(clips):
            value = centre + alike * rng.normal()
            row = {"film_id": film, "clip_id": f"{film}-{number}"}
            found.append(Measured(row, {metric.name: value for metric in scoring.ALL}, rng.normal(size=(8, 4))))
    return found


def test_clips_of_a_film_are_alike_so_films_are_left_out():
    (noise,) = [row for row in scoring.ceiling(windows(dict.fromkeys("abcd", 16)), 8, None) if row["name"] == "noise"]
    assert noise["n"] == 4
    (alone,) = [row for row in scoring.ceiling(windows({"a": 16}), 8, None) if row["name"] == "noise"]
    assert alone["n"] == 16
    assert alone["high"] - alone["low"] < 1 < noise["high"] - noise["low"]


def test_halves_share_no_film_where_that_leaves_enough_clips_in_each():
    sides = scoring.halves(windows({"a": 7, "b": 4, "c": 3, "d": 1}))
    assert [{one.row["film_id"] for one in side} for side in sides] == [{"a", "d"}, {"b", "c"}]
    uneven = scoring.halves(windows({"a": 40, "b": 2}))
    assert [len(side) for side in uneven] == [21, 21]
    lone = scoring.halves(windows({"a": 7, "b": 1}))
    assert [len(side) for side in lone] == [4, 4]
    assert [len(side) for side in scoring.halves(windows({"a": 5}))] == [3, 2]
    assert [len(side) for side in scoring.halves(windows({"a": 1}))] == [1]
    assert scoring.halves([]) == []
    (kernel,) = [row for row in scoring.ceiling(windows({"a": 5, "b": 5}), 8, None) if row["name"] == "kernel_distance"]
    assert kernel["value"] is not None
    assert "one group only" in kernel["reason"]


def test_videomae_has_no_drift_and_says_why(networks, scene, tmp_path):
    given = settings(tmp_path, features="videomae", videomae=tmp_path / "videomae")
    shown = Shown(scene(0, 8, 48), scene(0, 8, 48), [1] * 8, {"text": None})
    (found,) = Scorer(given, Library(), torch.device("cpu")).measure([shown])
    assert found.values["drift"].startswith("videomae sees a video as a whole")
    assert found.vectors is not None


def test_networks_are_asked_once_for_all_videos_and_each_gets_its_own_answer(networks, scene, tmp_path):
    rows = [{"prompt": "a red car"}, {"text": None}, {"text": "a dog"}]
    videos = [scene(seed, 8, 48) for seed in range(3)]
    shown = [Shown(video, video, [1] * len(video), row) for video, row in zip(videos, rows, strict=True)]
    found = Scorer(settings(tmp_path), Library(), torch.device("cpu")).measure(shown)
    assert [network.calls for network in networks] == [[3], [["a red car", "a dog"]]]
    assert [one.values["prompt_agreement"] for one in found] == [0.09, "a clip without a caption", 0.05]
    assert [one.values["subject_consistency"] for one in found] == pytest.approx([1] * 3)
    for one, vectors in zip(found, features.transnetv2(videos), strict=True):
        assert np.array_equal(one.vectors, vectors)
