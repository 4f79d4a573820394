from pathlib import Path

import pytest
import torch

from brickreel import config, files, tables
from brickreel.cluster.ranks import Ranks
from brickreel.training import rehearsal
from brickreel.training.buckets import Bucket, BucketPlan
from training import project

INDEX = Path("results/encode/index.parquet")


@pytest.fixture
def encoded(tmp_path, monkeypatch):
    """A folder with encoded clips, and we are in it."""
    project.make(tmp_path)
    monkeypatch.chdir(tmp_path)


def test_a_lora_run_rehearses_with_its_additions_alone(tmp_path, monkeypatch):
    project.make(tmp_path, lora={"rank": 2, "targets": ["qkv"]})
    monkeypatch.chdir(tmp_path)
    settings, cpu = config.load("config.json"), torch.device("cpu")
    run = settings.run("small")
    backend = rehearsal.build(settings.base, run, Ranks(), cpu)
    assert backend.names
    assert all(".lora_" in name for name in backend.names)
    plan = BucketPlan.from_json(files.read_json("results/plan/small/plan.json")["buckets"])
    assert len(rehearsal.rehearse(backend, run, plan, cpu).seconds) == 1


def test_the_largest_micro_batch_is_of_the_clips_that_there_are():
    full = Bucket("64p-4", 4, 64, 64, items=8, batch=4)
    few = Bucket("64p-8", 8, 64, 64, items=1, batch=8)
    assert rehearsal.worst_bucket(BucketPlan((few, full), "", used=9, heldout=0)) == full


@pytest.mark.parametrize(("micro_batches", "passes"), [(1, 1), (3, 2)])
def test_gradients_of_one_micro_batch_stand_while_the_next_goes_where_a_rank_takes_several(
    micro_batches, passes, encoded, monkeypatch
):
    settings, cpu = config.load("config.json"), torch.device("cpu")
    run = settings.run("small").model_copy(update={"micro_batches": micro_batches})
    backend = rehearsal.build(settings.base, run, Ranks(), cpu)
    lasts, plain = [], backend.round
    monkeypatch.setattr(backend, "round", lambda last: lasts.append(last) or plain(last))
    plan = BucketPlan.from_json(files.read_json("results/plan/small/plan.json")["buckets"])
    found = rehearsal.rehearse(backend, run, plan, cpu)
    assert lasts == ([False, True] if passes == 2 else [True]) * 2
    assert found.clips == passes * rehearsal.worst_bucket(plan).batch


def test_the_runs_share_of_blocks_is_recomputed(tmp_path, monkeypatch):
    project.make(tmp_path, grad_checkpoint=0.5)
    monkeypatch.chdir(tmp_path)
    settings = config.load("config.json")
    model = rehearsal.build(settings.base, settings.run("small"), Ranks(), torch.device("cpu")).model
    assert (model.gradient_checkpointing, model.recomputed_blocks, len(model.blocks)) == (True, 1, 2)


def test_samples_are_read_in_random_order_at_a_rate(encoded):
    assert rehearsal.reading(INDEX, threads=2, seed=0) > 1


def test_a_damaged_file_is_named(encoded):
    for path in Path("results/encode").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(ValueError, match=r"cannot be read from results/encode/.*\.safetensors"):
        rehearsal.reading(INDEX, threads=2, seed=0)


def test_without_latents_there_is_no_rate(encoded):
    rows = [row | {"file": None} for row in tables.read("encode_index", INDEX).to_pylist()]  # encoded while training
    tables.write("encode_index", INDEX / "00.parquet", rows)
    assert rehearsal.reading(INDEX, threads=2, seed=0) is None
    (INDEX / "00.parquet").unlink()
    assert rehearsal.reading(INDEX, threads=2, seed=0) is None
