import json
import os
import time

import pytest

from brickreel import config, files
from brickreel.cluster.beside import SampleJobs, one_gpu, one_gpu_of, profiled
from brickreel.cluster.submission import Resources


@pytest.mark.parametrize(
    ("gres", "one"),
    [
        ("", ""),
        ("gpu", "gpu"),
        ("gpu:8", "gpu:1"),
        ("gpu:h100:8", "gpu:h100:1"),
        ("gpu:h100:8(S:0-1)", "gpu:h100:1(S:0-1)"),
        ("gpu:8,nvme:2", "gpu:1,nvme:2"),
        ("nvme:2,gpu:h100:8", "nvme:2,gpu:h100:1"),
    ],
)
def test_a_sample_job_takes_one_gpu(gres, one):
    assert one_gpu(gres) == one


@pytest.mark.parametrize(
    ("options", "one"),
    [
        ("", ""),
        ("--qos=long --constraint 'h100&ib'", "--qos=long --constraint='h100&ib'"),
        ("--qos=long --gpus-per-node=8 --exclusive", "--qos=long --gpus=1"),
        ("--gpus=h100 --nodelist=gpu[1-4]", "--gpus=h100"),
        ("--gpus h100:32 --gpus-per-task=h100:1", "--gpus=h100:1"),
        ("--gpu-bind=closest --gres=gpu:8", "--gpu-bind=closest --gres=gpu:1"),
    ],
)
def test_a_sample_job_takes_one_gpu_where_further_options_ask_for_a_node(options, one):
    assert one_gpu_of(options) == one


PROFILE = "set-resources:\n  sample:\n    mem_mb: 32000\n    runtime: 240\n  train:\n    mem_mb: 0\n"


def test_a_sample_job_takes_memory_and_time_from_the_sample_section(tmp_path, monkeypatch):
    settings(tmp_path, monkeypatch, True)
    asked = Resources(nodes=4, tasks_per_node=8, mem_mb=0, runtime=1440, slurm_extra="--gpus-per-node=8")
    resources = SampleJobs("r", ["config.json"], asked).resources
    assert (resources.mem_mb, resources.runtime, resources.slurm_extra) == (None, 1440, "--gpus=1")
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/config.yaml").write_text(PROFILE)
    resources = SampleJobs("r", ["config.json"], asked).resources
    assert (resources.mem_mb, resources.runtime, resources.requeues) == (32000, 240, 0)


@pytest.mark.parametrize(
    "text", ["", "jobs: 3", "set-resources: [sample:mem_mb=5]", "a: [", "set-resources: {sample:}"]
)
def test_a_profile_without_numbers_for_samples_changes_nothing(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/config.yaml").write_text(text)
    assert profiled("sample") == {}


def settings(tmp_path, monkeypatch, wanted: bool) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"runs": {"r": {"sample_during_training": wanted}}}))
    return "config.json"


def test_only_training_jobs_whose_run_asks_for_samples_have_them(tmp_path, monkeypatch):
    wanted = settings(tmp_path, monkeypatch, True)
    assert SampleJobs.of("train", {"run": "r"}, [wanted], Resources())
    assert SampleJobs.of("preflight", {"run": "r"}, [wanted], Resources()) is None
    assert SampleJobs.of("train", {"run": "r"}, [settings(tmp_path, monkeypatch, False)], Resources()) is None


def test_it_stays_away_from_faulty_nodes_also_beside_a_job_that_is_followed_again(tmp_path, monkeypatch):
    wanted = settings(tmp_path, monkeypatch, True)
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm that could say how many nodes there are
    (tmp_path / "sinfo").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "sinfo").chmod(0o755)
    health = {"time_s": time.time(), "nodes": ["gpu1", "gpu2"], "exclude": ["gpu2"], "checks": []}
    files.write_json("logs/preflight/r/attempt-7-0.json", health)
    jobs = SampleJobs.of("train", {"run": "r"}, [wanted], Resources(exclude=("gpu9", "gpu2")))
    assert jobs.resources.exclude == ("gpu9", "gpu2")
    assert SampleJobs.of("train", {"run": "r"}, [wanted], Resources()).resources.exclude == ("gpu2",)


def test_it_runs_on_one_rank_with_the_sample_stages_settings(tmp_path, monkeypatch):
    settings(tmp_path, monkeypatch, True)
    asked = Resources(nodes=4, tasks_per_node=8, gres="gpu:h100:8", slurm_partition="gpu", min_nodes=2, mem_mb=0)
    jobs = SampleJobs("r", ["results/settings/train-r.json"], asked)
    assert jobs.settings == ("results/settings/sample-r.json",)
    assert jobs.resources == Resources(gres="gpu:h100:1", slurm_partition="gpu")
    assert SampleJobs("r", ["config.yaml"], asked).settings == ("config.yaml",)


def test_neither_the_last_step_nor_samples_of_this_training_are_asked_for(tmp_path, monkeypatch):
    settings(tmp_path, monkeypatch, True)
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm here
    jobs = SampleJobs.of("train", {"run": "r"}, ["config.json"], Resources())
    steps = ("step-00000250", "step-00000500", f"step-{config.load('config.json').run('r').max_steps:08d}")
    train = tmp_path / "results/train/r"
    for step in steps:
        (train / "checkpoints" / step).mkdir(parents=True)
        (train / "checkpoints" / step / "manifest.json").write_text("{}")
    (train / "attempts.jsonl").write_text('{"time_s": 1000}\n{"time_s": 2000}\n')
    for step, written in zip(steps, (900, 1500), strict=False):
        table = tmp_path / "results/sample/r" / step / "samples.parquet"
        table.parent.mkdir(parents=True)
        table.write_bytes(b"")
        os.utime(table, (written, written))
    jobs.look()
    assert jobs.asked == {"step-00000250"}  # sampled before this training began


def test_a_submission_that_fails_is_a_warning(tmp_path, monkeypatch, caplog):
    settings(tmp_path, monkeypatch, True)
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm here
    monkeypatch.setattr("brickreel.cluster.beside.logger.propagate", True)
    folder = tmp_path / "results/train/r/checkpoints/step-00000250"
    folder.mkdir(parents=True)
    jobs = SampleJobs("r", ["config.json"], Resources())
    jobs.look()
    assert caplog.text == ""  # without a manifest it is not a checkpoint
    damaged = folder.with_name("step-00000500.damaged")
    damaged.mkdir()
    for path in (folder, damaged):
        (path / "manifest.json").write_text("{}")
    jobs.look()
    assert "no samples of step-00000250 during training" in caplog.text
    assert jobs.asked == {folder.name}
