import math
from dataclasses import replace

import pyarrow.compute as pc
import pytest
import torch

import tiny
from brickreel import config, files, tables
from brickreel.training import gauge
from brickreel.training.buckets import plan_buckets
from brickreel.training.dataset import Dataset
from training import project

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Run settings, plan and dataset of a small project, and a transformer."""
    folder = tmp_path_factory.mktemp("gauge")
    source = project.make(folder, clips=8, heldout=5, gauge_share=1.0)
    run = config.load(source).run("small")
    index = tables.read("encode_index", folder / "results/encode/index.parquet")
    rows = [row | {name: str(folder / row[name]) for name in ("file", "text_file")} for row in index.to_pylist()]
    table = tables.table("encode_index", rows)
    plan = plan_buckets(table, run)
    return run, plan, Dataset(table, run.data, plan, "identity", (4, 16)), tiny.transformer()


def read(parts, rank=0, world_size=1):
    run, plan, dataset, model = parts
    return gauge.Gauge(dataset, run, plan, rank, world_size, CPU).read(model, None)


def test_two_readings_of_the_same_weights_are_equal_and_other_weights_differ(parts):
    first = read(parts)
    assert read(parts) == first
    weight = parts[3].blocks[0].mlp.fc1.weight
    with torch.no_grad():
        weight.add_(0.1)
        changed = read(parts)
        weight.sub_(0.1)
    assert changed != first


def test_only_held_out_clips_are_asked_about_each_once_per_bin(parts):
    run, plan, dataset, _ = parts
    asked = gauge.questions(dataset, run, plan)
    assert {question.row["split"] for question in asked} == {"heldout"}
    assert {question.row["kind"] for question in asked} == {"clip"}, "a still is no clip of its own"
    assert len(asked) == 5 * run.gauge_bins
    assert len({(question.clip, question.bin) for question in asked}) == len(asked)
    for question in asked:
        low, high = gauge.timestep_range(question.bin, run.gauge_bins)
        assert low <= question.timestep < high


def test_the_ranks_answer_every_question_once(parts):
    run, plan, dataset, _ = parts
    for world_size in (1, 2, 3, 4, 7):
        dealt = [gauge.Gauge(dataset, run, plan, rank, world_size, CPU)._dealt() for rank in range(world_size)]
        assert len({len(groups) for groups in dealt}) == 1
        answered = sorted(place for groups in dealt for group in groups for place in group if place >= 0)
        assert answered == list(range(len(gauge.questions(dataset, run, plan))))


def test_the_number_of_clips_keeps_the_reading_within_its_share(parts):
    run, plan, *_ = parts
    large = run.model_copy(update={"gauge_every": 250, "micro_batches": 32, "gauge_share": 0.02, "gauge_bins": 5})
    clips = gauge.clips_within_budget(large, plan, 10_000)
    trained = 250 * 32 * sum(bucket.shown for bucket in plan.buckets if bucket.frames > 1) / plan.micro_batches * 3
    assert clips == large.gauge_clips or 2 * clips * 5 <= 0.02 * trained
    assert gauge.clips_within_budget(large.model_copy(update={"gauge_share": 0.0}), plan, 100) == gauge.LEAST_CLIPS
    assert gauge.clips_within_budget(large, plan, 1) == 1


def test_interval_is_students(parts):
    mean, low, high = gauge.interval([1.0, 2.0, 3.0, 4.0])
    # Half width: t(0.975, 3) * s / sqrt(n) = 3.182446 * 1.290994 / 2.
    assert (mean, low, high) == pytest.approx((2.5, 2.5 - 2.054261, 2.5 + 2.054261), abs=1e-5)
    assert gauge.interval([3.0]) == (3.0, 3.0, 3.0)


def test_readings_are_relative_to_step_0_and_an_absent_clip_is_left_out(tmp_path):
    path = tmp_path / "gauge.jsonl"
    gauge.write(path, 0, 0, {"raw": [[2.0, 4.0], [1.0, 1.0]], "ema": [[2.0, 4.0], [1.0, 1.0]]})
    gauge.write(path, 1, 10, {"raw": [[1.0, math.nan], [2.0, 2.0]], "ema": [[3.0, 3.0], [1.0, 3.0]]})
    rows = tables.read_log("gauge", path).to_pylist()
    last = {(row["weights"], row["bin"]): row for row in rows if row["step"] == 10}
    assert last["raw", 0]["clips"] == 1
    assert last["raw", 0]["relative"] is None, "the clip that is left may be an easy one"
    assert last["raw", 1]["relative"] == last["ema", 1]["relative"] == pytest.approx(2.0)
    assert gauge.mean_losses(path) == {0: 2.0, 10: 2.5}
    assert gauge.mean_losses(path, "raw") == {0: 2.0}


def test_a_reading_that_cannot_be_set_in_relation_to_step_0_is_a_warning_once_in_an_attempt(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(gauge.logger, "propagate", True)
    path = tmp_path / "gauge.jsonl"
    gauge.write(path, 0, 0, {"ema": [[2.0, math.nan], [1.0, math.nan]]})
    assert not caplog.text, "an absent clip of step 0 has its own warning"
    for step in (10, 20):
        gauge.write(path, 0, step, {"ema": [[1.0, 1.0], [1.0, 2.0]]})
    (record,) = caplog.records
    assert "that of step 10 is not told relative to step 0" in record.getMessage()
    gauge.write(path, 1, 30, {"ema": [[1.0, 1.0], [1.0, 2.0]]})
    assert len(caplog.records) == 2
    gauge.write(tmp_path / "whole.jsonl", 0, 0, {"ema": [[2.0]]})
    gauge.write(tmp_path / "whole.jsonl", 0, 10, {"ema": [[1.0]]})
    assert len(caplog.records) == 2


def test_readings_of_other_timesteps_are_not_compared(tmp_path):
    path = tmp_path / "gauge.jsonl"
    assert gauge.mean_losses(path) == {}
    gauge.write(path, 0, 0, {"ema": [[4.0], [2.0]]})
    gauge.write(path, 0, 10, {"ema": [[2.0], [1.0]]})
    assert gauge.mean_losses(path) == {0: 3.0, 10: 1.5}
    gauge.write(path, 1, 20, {"ema": [[3.0], [2.0], [1.0]]})
    assert gauge.mean_losses(path) == {20: 2.0}
    rows = tables.read_log("gauge", path).to_pylist()
    assert [row["relative"] for row in rows] == [1.0, 1.0, 0.5, 0.5, None, None, None]
    gauge.write(path, 2, 10, {"ema": [[1.0], [2.0]]})  # as at first again, from an earlier checkpoint
    assert gauge.mean_losses(path) == {0: 3.0, 10: 1.5}
    assert tables.read_log("gauge", path).to_pylist()[-1]["relative"] == 1.0


def test_readings_of_other_clips_are_not_compared_however_many_they_are(tmp_path):
    path = tmp_path / "gauge.jsonl"
    gauge.write(path, 0, 0, {"ema": [[4.0, 4.0]]}, "these")
    gauge.write(path, 0, 10, {"ema": [[2.0, 2.0]]}, "these")
    gauge.write(path, 1, 20, {"ema": [[8.0, 8.0]]}, "others")
    rows = tables.read_log("gauge", path).to_pylist()
    assert [row["relative"] for row in rows] == [1.0, 0.5, None]
    assert gauge.mean_losses(path) == {20: 8.0}


def test_readings_from_before_questions_had_a_digest_are_read(tmp_path):
    path = tmp_path / "gauge.jsonl"
    gauge.write(path, 0, 0, {"ema": [[4.0]]})
    row = files.read_json_lines(path)[0]
    path.unlink()
    files.append_json_line(path, {name: value for name, value in row.items() if name != "questions"})
    assert gauge.mean_losses(path) == {0: 4.0}
    gauge.write(path, 1, 10, {"ema": [[2.0]]}, "these")
    assert [row["relative"] for row in tables.read_log("gauge", path).to_pylist()] == [1.0, None]


def test_the_digest_tells_clips_latents_and_timesteps_apart(parts):
    run, plan, dataset, _ = parts
    asked = gauge.questions(dataset, run, plan)
    known = gauge.digest(asked)
    assert known == gauge.Gauge(dataset, run, plan, 1, 2, CPU).asked
    others = [{"sample_id": "another"}, {"crc32": asked[0].row["crc32"] + 1}]
    changed = [replace(asked[0], row=asked[0].row | other) for other in others]
    changed.append(replace(asked[0], timestep=asked[0].timestep + 1))
    assert len({known, *(gauge.digest([other, *asked[1:]]) for other in changed)}) == 4


def test_stills_are_asked_where_there_is_nothing_else(tmp_path):
    source = project.make(tmp_path, clips=4, heldout=2)
    run = config.load(source).run("small")
    index = tables.read("encode_index", tmp_path / "results/encode/index.parquet")
    index = index.filter(pc.field("kind") == "still")
    plan = plan_buckets(index, run)
    asked = gauge.questions(Dataset(index, run.data, plan, "identity", (4, 16)), run, plan)
    assert {question.row["kind"] for question in asked} == {"still"}
    assert len(asked) == 2 * run.gauge_bins


def test_clips_that_are_out_of_reach_are_named_and_asked_for_again(parts, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(gauge.logger, "propagate", True)
    run, plan, dataset, model = parts
    whole = read(parts)
    reader = gauge.Gauge(dataset, run, plan, 0, 1, CPU)
    at = {name: reader.questions[0].row[name] for name in ("file", "text_file")}
    away = tmp_path / "away" / "00.safetensors"
    away.parent.mkdir()
    for question in reader.questions:
        question.row.update(file=str(away), text_file=str(away))
    assert all(math.isnan(loss) for losses in reader.read(model, None) for loss in losses)
    assert caplog.text.count(f"cannot be read from {away}") == 5, "each clip once"
    for question in reader.questions:
        question.row.update(at)
    assert reader.read(model, None) == whole
