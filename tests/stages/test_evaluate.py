import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brickreel import config, files, tables
from brickreel.evaluation import poses
from brickreel.stages import evaluate
from evaluation import project
from evaluation.scenes import draw_scene
from films import memory

STEPS = (0, 2, 4, 6)


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    folder = tmp_path / "a project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def scene():
    return draw_scene


def settings(**changes) -> config.Config:
    sample = {"prompts": ["a b", "c d"], "resolution": [48, 48], "frames": 8, "pose_rate": 8.0}
    run = {"data": {"time": "poses", "buckets": {"64p": {8: [1.0, 2]}}}, "max_steps": STEPS[-1]}
    return config.load({"runs": {"r": run}, "sample": sample}, changes)


def recover(scene, step: int, seed: int) -> np.ndarray:
    """A scene that is buried in noise at step 0 and clean at the last step."""
    rng = np.random.default_rng(seed)
    frames = scene(40 + seed, 8, 48)
    return np.clip(frames + rng.normal(0, 40 * (1 - step / STEPS[-1]), frames.shape), 0, 255).astype(np.uint8)


def learnt(folder: Path, scene) -> None:
    """Samples that become better with every checkpoint, while the held-out loss falls."""
    videos = {
        (step, prompt, seed): recover(scene, step, 10 * place + seed)
        for step in STEPS
        for place, prompt in enumerate(("a b", "c d"))
        for seed in (0, 1)
    }
    project.write_samples(folder, videos)
    project.write_gauge(folder, {step: 1 - step / 10 for step in STEPS})


def value(found: dict, name: str, step: int | None, part: str = "metrics", **wanted):
    rows = [row for row in found[part] if row["name"] == name and row["step"] == step]
    rows = [row for row in rows if all(row[key] == given for key, given in wanted.items())]
    assert len(rows) == 1, rows
    return rows[0]


def test_metrics_follow_the_quality_of_the_checkpoints_and_the_gauge_agrees(in_folder, scene):
    project.write_clips(in_folder, scene)
    learnt(in_folder, scene)
    evaluate.run(settings(), "r")
    found = project.scores(in_folder)

    for name, rising in [("smoothness", True), ("frechet_distance", False), ("noise", False)]:
        values = [value(found, name, step)["value"] for step in STEPS]
        assert values == sorted(values, reverse=not rising), name
    for row in found["metrics"]:
        if row["value"] is not None and row["low"] is not None:
            assert row["low"] <= row["value"] <= row["high"]
            assert row["n"] == 2
        else:
            assert row["reason"]
    assert value(found, "smoothness", 0)["weights"] == "base"

    # Held-out clips among themselves are better than the noisy samples.
    assert value(found, "noise", None, "ceiling")["value"] < value(found, "noise", 0)["value"]
    assert value(found, "frechet_distance", None, "ceiling")["value"] < value(found, "frechet_distance", 0)["value"]

    agreed = [row for row in found["gauge_correlation"] if row["metric"] == "frechet_distance"]
    assert [row["bin"] for row in agreed] == [0, 1, None]
    assert all(row["value"] == pytest.approx(1) and row["steps"] == list(STEPS) for row in agreed)
    opposed = [row for row in found["gauge_correlation"] if row["metric"] == "smoothness"]
    assert all(row["value"] == pytest.approx(-1) for row in opposed)
    assert found["gaps"] == []


def test_copies_of_training_clips_are_found_and_shown(in_folder, scene):
    project.write_clips(in_folder, scene)
    copies = {(4, "a b", seed): scene(seed, 12, 48)[2:10] for seed in (0, 1)}
    fresh = {(4, "c d", seed): scene(60 + seed, 8, 48) for seed in (0, 1)}
    project.write_samples(in_folder, {**copies, **fresh})
    evaluate.run(settings(), "r")
    videos = json.loads(Path("results/evaluate/r/videos.json").read_text())
    by_video = {(row["prompt"], row["seed"]): row for row in videos}
    for seed in (0, 1):
        row = by_video["a b", seed]
        assert row["nearest"] == {"clip_id": f"{seed:016x}", "first_pose": 2}
        assert row["copies"] == 1
        assert row["nearest_training_clip"] < 0.5 * by_video["c d", seed]["nearest_training_clip"]
    with Image.open("results/evaluate/r/nearest.jpg") as picture:
        assert picture.size[1] > 4 * 132


def test_samples_of_a_run_on_frames_are_judged_by_the_poses_they_show(in_folder, scene):
    project.write_clips(in_folder, scene)
    twos = {(4, "a b", seed): scene(seed, 8, 48).repeat(2, axis=0) for seed in range(3)}
    ones = {(2, "a b", seed): scene(seed, 16, 48) for seed in range(3)}
    project.write_samples(in_folder, {**twos, **ones})
    frames = {"runs": {"r": {"data": {"time": "frames"}}}}
    evaluate.run(settings(**frames), "r")
    found = project.scores(in_folder)
    of_ones, of_twos = value(found, "smoothness", 2)["value"], value(found, "smoothness", 4)["value"]
    assert of_twos == pytest.approx(of_ones, abs=0.03)
    assert value(found, "hold_distance", 2)["value"] == pytest.approx(0, abs=0.1)
    assert value(found, "hold_distance", 4)["value"] == pytest.approx(1, abs=0.1)
    videos = json.loads(Path("results/evaluate/r/videos.json").read_text())
    assert {(row["step"], row["poses"]) for row in videos} == {(2, 16), (4, 8)}


def test_a_step_that_was_sampled_in_another_way_is_left_out_by_name(in_folder, scene):
    asked = [("a b", 0), ("c d", 0)]
    for step, guidance in ((0, 2.0), (2, 9.0), (4, 2.0)):
        rows = {(step, *one): scene(50 + place, 8, 48) for place, one in enumerate(asked)}
        project.write_samples(in_folder, rows, guidance=guidance)
    project.write_samples(in_folder, {(3, "e f", 0): scene(50, 8, 48)}, guidance=2.0)
    evaluate.run(settings(), "r")
    found = project.scores(in_folder)
    assert {row["step"] for row in found["metrics"]} == {0, 4}
    assert any("step 2, 3" in gap for gap in found["gaps"])


def test_steps_with_other_frames_holds_or_sampler_are_no_part_of_the_series(in_folder, scene):
    usual = {"sampler": "iddpm", "steps": 5, "guidance": 2.0}

    def write(step, frames=8, hold=1, **changes):
        shown = {(step, "a b", 0): scene(50, frames, 48), (step, "c d", 0): scene(51, frames, 48)}
        return project.write_samples(in_folder, shown, hold, **usual | changes)

    write(0, sampler="rectified-flow")  # the base model's own
    write(2, frames=12)
    write(3, hold=2)
    write(4, sampler="dpm-solver++")
    write(5, outcome="failed", reason="out of memory", frames=8)
    write(6)
    gaps = []
    assert {row["step"] for row in evaluate._made_alike(evaluate._samples("r"), gaps)} == {0, 5, 6}
    assert "step 2, 3, 4, made" in gaps[0]


def test_samples_of_steps_beyond_the_final_weights_are_left_out_by_name():
    gaps = []
    rows = evaluate._up_to_final([{"step": step} for step in STEPS], 4, gaps)
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert gaps == ["left out: samples of step 6, since the final weights are of step 4"]


def test_a_held_out_film_that_training_was_shown_is_named_unless_it_was_an_earlier_training(in_folder, scene):
    rows = project.write_clips(in_folder, scene, train=1, heldout=1)
    row = dict.fromkeys(tables.SCHEMAS["attempts"].names) | {"event": "start", "first_step": 1, "time_s": 0.0}
    gaps = []
    for attempt in (0, 1):
        samples = {"attempt": attempt, "step": 2, "sample_ids": [f"{rows[attempt]['clip_id']}.64p"]}
        files.append_json_line(f"results/train/r/steps/{attempt}-0.jsonl", samples)
        tables.log("attempts", "results/train/r/attempts.jsonl", row | {"attempt": attempt})
    evaluate._note_shown("r", 4, gaps)
    assert gaps == ["held-out films that training was shown, and which test nothing new: film1 (steps 2 to 2)"]
    tables.log("attempts", "results/train/r/attempts.jsonl", row | {"attempt": 2})
    evaluate._note_shown("r", 4, gaps)
    assert len(gaps) == 1


def test_videos_are_measured_in_parts_that_memory_holds(in_folder, scene, monkeypatch):
    project.write_samples(in_folder, {(4, "a b", seed): scene(50 + seed, 8, 48) for seed in range(5)})
    project.write_clips(in_folder, scene, train=1, heldout=3)
    together = []
    monkeypatch.setattr(evaluate.scoring, "BYTES_AT_ONCE", 3 * 8 * 48 * 48 * 3)
    measure = evaluate.Scorer.measure
    monkeypatch.setattr(
        evaluate.Scorer, "measure", lambda self, part: together.append(len(part)) or measure(self, part)
    )
    evaluate.run(settings(), "r")
    assert together == [2, 1, 2, 2, 1]
    assert value(project.scores(in_folder), "noise", 4)["n"] == 5


def test_a_corrected_caption_stands_before_the_one_that_came_with_a_clip(in_folder, scene):
    rows = [row | {"text": "as it came"} for row in project.write_clips(in_folder, scene, train=2, heldout=0)]
    tables.write("cut_index", evaluate.CLIPS / "00.parquet", rows)
    corrected = {"clip_id": rows[0]["clip_id"], "kind": "clip", "text": "corrected", "outcome": "ok"}
    tables.write("captions", evaluate.CAPTIONS, [dict.fromkeys(tables.SCHEMAS["captions"].names) | corrected])
    found, _ = evaluate._clips("train", 2)
    assert {row["clip_id"]: row["text"] for row in found} == {
        rows[0]["clip_id"]: "corrected", rows[1]["clip_id"]: "as it came",
    }  # fmt: skip


def test_drift_is_reported_per_length_and_condition_free_samples_by_themselves(in_folder, scene):
    project.write_clips(in_folder, scene)
    rows = project.write_samples(in_folder, {(4, "a b", 0): scene(50, 8, 48), (4, "c d", 0): scene(51, 8, 48)})
    turned = np.concatenate([scene(50, 8, 48), scene(55, 8, 48)])
    rows += project.write_samples(in_folder, {(4, "a b", 5): turned, (4, "c d", 5): turned[::-1]}, length=2)
    noisy = recover(scene, 0, 3)
    rows += project.write_samples(in_folder, {(4, "a b", 6): noisy, (4, "c d", 6): noisy[::-1]}, conditional=False)
    tables.write("samples", "results/sample/r/step-00000004/samples.parquet", rows)
    evaluate.run(settings(), "r")
    found = project.scores(in_folder)
    usual = {"length": 1, "conditional": True}
    assert value(found, "drift", 4, length=2)["value"] > value(found, "drift", 4, **usual)["value"]
    free = value(found, "noise", 4, conditional=False)
    assert free["value"] > 2 * value(found, "noise", 4, **usual)["value"]


def test_what_is_missing_is_a_sentence_and_the_rest_is_computed(in_folder, scene):
    project.write_clips(in_folder, scene, heldout=0)
    rows = project.write_samples(in_folder, {(4, "a b", seed): scene(50 + seed, 8, 48) for seed in (0, 1, 2)})
    Path(rows[0]["path"]).write_bytes(b"no video")
    Path(rows[1]["path"]).unlink()
    failed = {**rows[2], "seed": 9, "path": "none.mp4", "outcome": "failed", "reason": "the weights hold NaN"}
    tables.write("samples", "results/sample/r/step-00000004/samples.parquet", [*rows, failed])
    evaluate.run(settings(evaluate={"dinov2": "nowhere", "clip": "nowhere"}), "r")
    found = project.scores(in_folder)
    assert value(found, "smoothness", 4)["value"] > 0.5
    assert "one group only" in value(found, "smoothness", 4)["reason"]
    assert "no held-out clip" in value(found, "frechet_distance", 4)["reason"]
    assert "no folder nowhere" in value(found, "subject_consistency", 4)["reason"]
    assert "no folder nowhere" in value(found, "prompt_agreement", 4)["reason"]
    assert all(row["value"] is None and row["reason"] for row in found["ceiling"])
    gaps = " ".join(found["gaps"])
    for part in ("there is no held-out clip", "2 sampled videos cannot be read", "1 videos were not made: the weights"):
        assert part in gaps
    assert found["gauge_correlation"] == []


def test_with_more_clips_than_are_compared_they_are_of_all_films_and_the_report_says_so(in_folder, scene):
    project.write_samples(in_folder, {(4, "a b", seed): scene(50 + seed, 8, 48) for seed in (0, 1)})
    rows = project.write_clips(in_folder, scene, heldout=4)
    films = [row | {"clip_id": f"{n % 2:016x}-{n:06d}", "kind": "clip"} for n, row in enumerate(rows * 20)]
    tables.write("cut_index", "results/cut/index.parquet/00.parquet", films)
    rows, count = evaluate._clips("train", 20)
    first = [row["clip_id"][:16] for row in rows]
    assert (len(first), count) == (20, sum(row["split"] == "train" for row in films))
    assert 0.2 < first.count(first[0]) / len(first) < 0.8
    project.write_clips(in_folder, scene, heldout=4)
    evaluate.run(settings(evaluate={"max_clips": 2}), "r")
    assert "samples are compared with 2 of 4 held-out clips" in " ".join(project.scores(in_folder)["gaps"])


def test_of_many_clips_only_those_that_are_shown_are_held_and_captioned(in_folder, scene):
    held = project.write_clips(in_folder, scene, train=1, heldout=1)[1] | {"holds": [2] * 60}
    rows = [held | {"clip_id": f"{n:05d}", "holds": [2] * (3 if n % 3 else 60), "text": None} for n in range(3000)]
    tables.write("cut_index", evaluate.CLIPS / "00.parquet", rows)
    captions = [
        dict.fromkeys(tables.SCHEMAS["captions"].names)
        | {"clip_id": row["clip_id"], "kind": kind, "text": f"{kind} {row['clip_id']}", "outcome": "ok"}
        for row in rows
        for kind in ("still", "clip")
    ]
    tables.write("captions", evaluate.CAPTIONS / "00.parquet", captions)
    found = []
    taken = memory.peak(lambda: found.append(evaluate._clips("heldout", 4, poses.has_window(1))))
    assert taken < memory.peak(lambda: tables.read("cut_index", evaluate.CLIPS).to_pylist()) / 4
    shown, count = found[0]
    assert count == 3000
    long = [row["clip_id"] for row in rows if len(row["holds"]) == 60]
    first = sorted(long, key=lambda clip: hashlib.sha256(clip.encode()).digest())[:4]
    assert [(row["clip_id"], row["text"]) for row in shown] == [(clip, f"clip {clip}") for clip in first]


def test_missing_features_for_the_distance_leave_the_rest(in_folder, scene):
    project.write_clips(in_folder, scene)
    project.write_samples(in_folder, {(4, "a b", seed): scene(50 + seed, 8, 48) for seed in (0, 1)})
    evaluate.run(settings(evaluate={"features": "videomae", "videomae": "nowhere"}), "r")
    found = project.scores(in_folder)
    assert "no folder nowhere" in value(found, "frechet_distance", 4)["reason"]
    assert "no folder nowhere" in value(found, "drift", 4)["reason"]
    assert value(found, "noise", 4)["value"] is not None


def test_one_prompt_takes_its_interval_over_seeds(in_folder, scene):
    project.write_clips(in_folder, scene)
    project.write_samples(in_folder, {(4, "a b", seed): scene(50 + seed, 8, 48) for seed in range(4)})
    evaluate.run(settings(), "r")
    row = value(project.scores(in_folder), "noise", 4)
    assert row["n"] == 4
    assert row["low"] < row["value"] < row["high"]


def test_without_dataset_the_samples_are_still_measured(in_folder, scene):
    project.write_samples(in_folder, {(0, "a b", 0): scene(1, 8, 48)})
    evaluate.run(settings(), "r")
    found = project.scores(in_folder)
    assert value(found, "smoothness", 0)["value"] is not None
    assert "no training clip" in value(found, "copies", 0)["reason"]


def test_a_clip_that_cannot_be_read_is_named(in_folder, scene):
    rows = project.write_clips(in_folder, scene)
    Path(rows[0]["path"]).write_bytes(b"")
    Path(rows[-1]["path"]).write_bytes(b"")
    project.write_samples(in_folder, {(0, "a b", 0): scene(1, 8, 48)})
    evaluate.run(settings(), "r")
    gaps = " ".join(project.scores(in_folder)["gaps"])
    assert "1 training clips cannot be read" in gaps
    assert "1 held-out clips cannot be read" in gaps


def test_before_sample_and_without_readable_videos_there_is_a_sentence(in_folder, scene):
    with pytest.raises(FileNotFoundError, match="run `brickreel sample --run r` first"):
        evaluate.run(settings(), "r")
    rows = project.write_samples(in_folder, {(0, "a b", 0): scene(1, 8, 48)})
    Path(rows[0]["path"]).unlink()
    with pytest.raises(ValueError, match="no sampled video can be evaluated"):
        evaluate.run(settings(), "r")
