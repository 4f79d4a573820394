import json
import shutil
from pathlib import Path

import pytest

from brickreel import files
from brickreel.stages import evaluate
from brickreel.telemetry import compare
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


def _moved(table: Path, name: str) -> None:
    from brickreel import tables

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
