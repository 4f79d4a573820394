"""Samples during training: jobs of their own, submitted by the launcher, while training goes on."""

import json
import os

import tiny
from brickreel import tables
from slurm.site import finish, wait
from training import project


def test_each_checkpoint_is_sampled_by_a_job_beside_training_and_once_only(site):
    source = project.make(
        site.folder, max_steps=400, checkpoint_every=150, gauge_every=1000, sample_during_training=True
    )
    base = tiny.save_base(site.folder / "models")
    settings = json.loads(source.read_text())
    settings["base"] |= {part: {"path": str(base / part)} for part in ("autoencoder", "text_encoder")}
    settings["sample"] = {"prompts": ["a red car", "the blue house"], "steps": 2, "frames": 2, "resolution": [64, 64]}
    source.write_text(json.dumps(settings))
    profile = site.folder / "slurm/config.yaml"
    profile.write_text(
        profile.read_text().replace("mem_mb: 32000", "mem_mb: 5000").replace("runtime: 240", "runtime: 9")
    )
    launcher = site.launch("train", 1, 1)
    job_id = site.job_id()
    tables_of = site.folder / "results/sample/small"
    first = wait("samples", 240, lambda: sorted(tables_of.glob("step-*/samples.parquet")))[0]
    going_on = site.state(job_id) in ("RUNNING", "COMPLETING")
    output = finish(launcher)
    assert going_on or os.path.getmtime(first) < site.attempts()[-1]["time_s"], output
    rows = tables.read("samples", first).to_pylist()
    assert {row["outcome"] for row in rows} == {"ok"}
    assert {row["prompt"] for row in rows} == {"a red car", "the blue house"}
    assert {row["step"] for row in rows} == {150}
    asked = ("sacct", "-nPX", "-S", "now-1hours", "--name=sample-small-step-00000150", "-o", "Timelimit,AllocTRES")
    (job,) = site.cluster.ask(*asked).splitlines()
    assert "gres/gpu=1" in job
    assert "00:09:00" in job
    assert "mem=5000M" in job
    assert not (tables_of / "sheet.jpg").exists()  # the sample stage's own, after training
