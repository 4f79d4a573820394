import hashlib
import json
import subprocess
import sys

import pytest
import yaml

import tiny
from brickreel import config, files, tables
from brickreel.stages import export
from training import project

METRIC = {"conditional": True, "low": 0.1, "high": 0.4, "n": 8, "unit": "distance", "reason": ""}
SCORES = {
    "metrics": [
        {"name": "frechet", "weights": "base", "step": 0, "value": 0.75, **METRIC},
        {"name": "frechet", "weights": "ema", "step": 3, "value": 0.5, **METRIC},
        {"name": "frechet", "weights": "ema", "step": 6, "value": 0.25, **METRIC},
    ]
}
ALONE = """
import sys
sys.modules["brickreel"] = None  # as on a machine where it is not installed
import hashlib, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
video = pipeline("a red car", num_frames=3, height=32, width=40, num_inference_steps=2,
                 generator=torch.Generator().manual_seed(5)).frames[0]
assert not [name for name in sys.modules if name.startswith("brickreel.")]
print(type(pipeline).__name__, video.shape, hashlib.sha256(video.tobytes()).hexdigest())
"""


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A project folder whose run is trained and evaluated; the cut index names an owner with odd characters."""
    source = project.make(tmp_path)
    tiny.save_base(tmp_path / "model", seed=1)
    trained = tmp_path / "results" / "train" / "small"
    for which in ("raw", "ema"):
        tiny.transformer().save_pretrained(trained / "final" / which)
    files.write_json(trained / "final" / "final.json", {"step": 6, "samples": 36, "order": "x", "checkpoint": "c"})
    files.write_json(trained / "dataset.json", {"fingerprint": "f1nger"})
    files.write_json(tmp_path / "results" / "evaluate" / "small" / "scores.json", SCORES)
    rows = [
        cut_row(f"clip{number:03d}", f"film{number % 3}", kind) for number in range(12) for kind in ("clip", "still")
    ]
    rows.append(cut_row("never-encoded", "film9", "clip"))
    for step, loss in ((0, 1.0), (3, 0.9), (6, 0.5)):
        for which, part in (("ema", 0), ("ema", 1), ("raw", 0)):
            tables.log("gauge", trained / "gauge.jsonl", gauge_row(step, which, part, loss + 0.1 * part))
    tables.write("cut_index", tmp_path / "results" / "cut" / "index.parquet" / "00.parquet", rows)
    settings = json.loads(source.read_text()) | {"base": tiny.base_settings(tmp_path / "model")}
    monkeypatch.chdir(tmp_path)
    return config.load(settings)


def cut_row(clip, film, kind):
    return dict.fromkeys(tables.SCHEMAS["cut_index"].names) | {
        "clip_id": clip,
        "film_id": film,
        "kind": kind,
        "split": "heldout" if film == "film2" else "train",
        "title": "Bricks | <script>alert(1)</script>\n# Fun",
        "licence": "CC-BY-4.0" if film == "film0" else None,
        "rights_holder": "A. Holder",
        "outcome": "ok",
        "reason": "",
    }


def gauge_row(step, weights, part, relative):
    return dict.fromkeys(tables.SCHEMAS["gauge"].names) | {
        "step": step, "weights": weights, "bin": part, "relative": relative, "clips": 9,
    }  # fmt: skip


def test_the_folder_makes_the_same_video_with_and_without_brickreel(finished, tmp_path):
    export.run(finished, "small")
    folder = tmp_path / "results" / "export" / "small"
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    name, shape, digest = done.stdout.strip().rsplit("\n")[-1].partition(" (")[0], done.stdout, done.stdout.split()[-1]
    assert name == "TextToVideoPipeline"
    assert "(3, 32, 40, 3)" in shape
    assert digest == hashlib.sha256(here(folder).tobytes()).hexdigest()


def here(folder):
    import torch

    from brickreel.models.pipeline import OpenSoraPipeline

    pipeline = OpenSoraPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    given = {"num_frames": 3, "height": 32, "width": 40, "num_inference_steps": 2}
    return pipeline("a red car", **given, generator=torch.Generator().manual_seed(5)).frames[0]


def test_the_model_card_says_what_it_is(finished, tmp_path):
    export.run(finished, "small")
    card = (tmp_path / "results" / "export" / "small" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["pipeline_tag"] == "text-to-video"
    assert "ema weights after 6 steps and 36 shown clips" in card
    assert "3 films, 12 clips and 12 stills; 1 of the films were held out" in card
    assert "Held-out loss after 6 steps, on 9 clips of films that training never saw: 0.550 of" in card
    assert str(tmp_path) not in card
    assert "| frechet | before fine-tuning | 0.75 | 0.1 to 0.4 | 8 |" in card
    assert "| frechet | after 6 steps | 0.25 |" in card
    assert "0.5 |" not in card
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])["max_steps"] == 6


def test_the_dataset_card_lists_every_film_and_no_markup_of_theirs(finished, tmp_path):
    export.run(finished, "small")
    card = (tmp_path / "results" / "export" / "small" / "DATASET.md").read_text()
    assert card.count("| A. Holder |") == 3
    assert "| CC-BY-4.0 | 1 | 4 | 4 |" in card
    assert "| none stated | 2 | 8 | 8 |" in card
    assert "film9" not in card
    assert "<script>" not in card
    assert "\n# Fun" not in card
    assert "f1nger" in card


def test_a_second_export_replaces_the_first_and_leaves_nothing_beside_it(finished, tmp_path):
    export.run(finished, "small")
    parent = tmp_path / "results" / "export"
    (parent / "small" / "stale.txt").write_text("old")
    export.run(config.load(finished.model_dump(mode="json"), {"export": {"weights": "raw"}}), "small")
    assert [path.name for path in parent.iterdir()] == ["small"]
    assert not (parent / "small" / "stale.txt").exists()
    assert "raw weights" in (parent / "small" / "README.md").read_text()


def test_a_missing_part_of_the_base_leaves_the_old_export(finished, tmp_path):
    export.run(finished, "small")
    broken = {"base": {"autoencoder": {"path": "nobody/nothing"}}}
    with pytest.raises(FileNotFoundError, match="hf download nobody/nothing"):
        export.run(config.load(finished.model_dump(mode="json"), broken), "small")
    assert (tmp_path / "results" / "export" / "small" / "model_index.json").is_file()
    assert [path.name for path in (tmp_path / "results" / "export").iterdir()] == ["small"]


def test_an_unfinished_run_is_not_exported(finished, tmp_path):
    (tmp_path / "results" / "train" / "small" / "final" / "final.json").unlink()
    with pytest.raises(FileNotFoundError, match="run `brickreel train --run small` to its end"):
        export.run(finished, "small")
