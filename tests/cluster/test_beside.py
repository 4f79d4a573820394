import json

import pytest

from brickreel.cluster.beside import SampleJobs, one_gpu
from brickreel.cluster.submission import Resources


@pytest.mark.parametrize(
    ("gres", "one"),
    [("", ""), ("gpu:8", "gpu:1"), ("gpu:h100:8", "gpu:h100:1"), ("gpu:h100:8(S:0-1)", "gpu:h100:1(S:0-1)")],
)
def test_a_sample_job_takes_one_gpu(gres, one):
    assert one_gpu(gres) == one


def settings(tmp_path, monkeypatch, wanted: bool) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"runs": {"r": {"sample_during_training": wanted}}}))
    return "config.json"


def test_only_training_jobs_whose_run_asks_for_samples_have_them(tmp_path, monkeypatch):
    wanted = settings(tmp_path, monkeypatch, True)
    assert SampleJobs.of("train", {"run": "r"}, [wanted], Resources())
    assert SampleJobs.of("preflight", {"run": "r"}, [wanted], Resources()) is None
    assert SampleJobs.of("train", {"run": "r"}, [settings(tmp_path, monkeypatch, False)], Resources()) is None


def test_it_runs_on_one_rank_with_the_sample_stages_settings(tmp_path, monkeypatch):
    settings(tmp_path, monkeypatch, True)
    asked = Resources(nodes=4, tasks_per_node=8, gres="gpu:h100:8", slurm_partition="gpu", min_nodes=2, mem_mb=0)
    jobs = SampleJobs("r", ["results/settings/train-r.json"], asked)
    assert jobs.settings == ("results/settings/sample-r.json",)
    assert jobs.resources == Resources(gres="gpu:h100:1", slurm_partition="gpu")
    assert SampleJobs("r", ["config.yaml"], asked).settings == ("config.yaml",)


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
