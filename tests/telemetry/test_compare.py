import json
import re
import shutil
from pathlib import Path

import pytest

from brickreel import files, tables
from brickreel.stages import evaluate
from brickreel.telemetry import compare
from brickreel.telemetry.render import comparison
from evaluation import project
from evaluation.scenes import draw_scene


def test_page_shows_what_differs_side_by_side_and_nothing_is_executed(tmp_path, monkeypatch):
    from brickreel import config

    monkeypatch.chdir(tmp_path)
    project.write_clips(tmp_path, draw_scene)
    clean = {(4, prompt, 0): draw_scene(place, 8, 48) for place, prompt in enumerate(("a <b> & b", "c d", "e f"))}
    noisy = {key: (frames.astype(int) * 7 % 256).astype("uint8") for key, frames in clean.items()}
    settings = {"sample": {"prompts": ["x"], "resolution": [48, 48], "frames": 8}}
    for name, videos in (("good", clean), ("bad", noisy)):
        project.write_samples(tmp_path, videos)
        project.write_gauge(tmp_path, {0: 1.0, 4: 0.9})
        evaluate.run(config.load({"runs": {"r": {}}}, settings), "r")
        for stage in ("sample", "train", "evaluate"):
            Path("results", stage, "r").rename(Path("results", stage, name))
        for table in Path("results/sample", name).rglob("*.parquet"):
            _moved(table, name)
        shown = {"runs": {name: {"seed": 42 if name == "good" else 7}}, "sample": {"steps": 20}}
        files.write_json(Path("results/settings") / f"train-{name}.json", shown)
    page = compare.write_page("good", "bad", tmp_path / "out").read_text()
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert found["settings"] == [{"name": "run.seed", "first": 42, "second": 7}]
    row = next(row for row in found["metrics"] if row["name"] == "noise")
    assert row["difference"]["low"] > 0
    assert row["difference"]["n"] == 3
    smooth = next(row for row in found["metrics"] if row["name"] == "smoothness")
    assert smooth["difference"]["high"] < 0
    assert "good is better" in page
    assert page.count("<video") == 6
    assert "a &lt;b&gt; &amp; b" in page
    assert "<b>" not in page
    assert "run.seed" in page
    assert len(list((tmp_path / "out/media").rglob("*.mp4"))) == 6


def test_what_cannot_be_compared_has_no_difference_and_no_verdict_and_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, network, frames, value in (("a", "transnetv2", 16, 0.1), ("b", "dinov2", 32, 0.5)):
        about = {"step": 4, "weights": "ema", "conditional": True, "length": 1}
        rows = [
            {"name": metric, "value": value, "low": None, "high": None, "better": "lower", "unit": "u", **about}
            | {"n": 3, "videos": 3, "reason": None}
            for metric in ("drift", "kernel_distance", "noise")
        ]
        metrics = rows + [row | {"step": 2} for row in rows]
        scores = {"run": name, "features": network, "metrics": metrics, "ceiling": [], "gauge_correlation": []}
        files.write_json(Path("results/evaluate") / name / "scores.json", scores | {"gaps": []})
        one = {"path": "", "seed": 0, "poses": 8, "nearest": None, **about}
        videos = [
            one | {"prompt": prompt, "drift": value + place / 100, "noise": value - place / 100}
            for place, prompt in enumerate("xyz")
        ]
        files.write_json(Path("results/evaluate") / name / "videos.json", videos)
        samples = dict.fromkeys(tables.SCHEMAS["samples"].names) | {"prompt_id": "x", "prompt": "x", "seed": 0, **about}
        samples |= {"frames": frames, "height": 48, "width": 48, "pose_rate": 8.0, "steps": 9, "sampler": "iddpm"}
        samples |= {"guidance": 7.0, "path": "", "outcome": "ok", "reason": ""}
        tables.write("samples", Path("results/sample") / name / "step-00000004/samples.parquet", [samples])
    page = compare.write_page("a", "b", tmp_path / "out").read_text()
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    by_name = {row["name"]: row for row in found["metrics"]}
    assert by_name["drift"]["difference"] is None
    assert by_name["noise"]["difference"]["n"] == 3
    assert "a is measured in features of transnetv2, b in those of dinov2" in found["gaps"][0]
    assert found["made"] == [{"name": "poses", "first": "16", "second": "32"}]
    assert page.count("not comparable: features of two networks") == 2
    assert "The videos were made in different ways" in page
    assert "poses 16 and 32." in page
    assert re.findall(r"<title id=.*?>(.*?)</title>", page) == ["noise"]


def _moved(table: Path, name: str) -> None:
    rows = [
        row | {"path": row["path"].replace("/r/", f"/{name}/")} for row in tables.read("samples", table).to_pylist()
    ]
    tables.write("samples", table, rows)


def test_the_same_run_twice_and_an_unknown_one_are_sentences(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the same run"):
        compare.write_page("a", "a", tmp_path)
    with pytest.raises(FileNotFoundError, match="run 'a' has left nothing"):
        compare.write_page("a", "b", tmp_path)
    shutil.rmtree(tmp_path / "results", ignore_errors=True)


def test_a_single_prompt_has_a_difference_and_no_interval():
    videos = [{"prompt": "a", "seed": 0, "step": 4, "weights": "ema", "conditional": True, "length": 1, "noise": 3.0}]
    other = [videos[0] | {"noise": 5.0}]
    found = compare.paired(videos, other)["noise", True, 1]
    assert found == {"value": 2.0, "low": None, "high": None, "n": 1}


def test_a_reading_of_fewer_clips_leaves_a_gap_in_the_held_out_curve():
    series = [{"weights": "ema", "step": [0, 2, 4], "relative": [1.0, None, 0.8]}]
    assert comparison._held_out({"run": "a", "gauge": {"series": series}}) == ("a", [0, 4], [1.0, 0.8])
