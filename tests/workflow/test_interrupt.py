"""Killed in the middle of every stage and started again, the graph loses nothing and pays nothing twice."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from brickreel import tables
from brickreel.films import demo
from brickreel.stages import STAGES

ROOT = Path(__file__).resolve().parent.parent.parent
SETTINGS = {
    "project": {"name": "interrupted", "shards": 2, "runs": ["short"]},
    "ingest": {"sources": "films/sources.csv"},
    "curate": {"min_poses": 8, "heldout_share": 0.3},
    "cut": {"short_side": 90},
    "caption": {"captioner": "embedded"},
    "base": {part: {"path": "builtin:tiny"} for part in ("transformer", "autoencoder", "text_encoder")},
    "encode": {"text_tokens": 48},
    "runs": {
        "short": {
            "data": {"buckets": {"64p": {8: [1.0, 2], 1: [1.0, 4]}}},
            "max_steps": 12,
            "micro_batches": 2,
            "precision": "fp32",
            "grad_checkpoint": False,
            "checkpoint_every": 2,
            "gauge_every": 6,
            "gauge_clips": 2,
        }
    },
    "sample": {"prompts": ["a red brick"], "resolution": [64, 64], "frames": 8, "steps": 4, "checkpoints": "final"},
}
STRANGE_NAMES = ('it\'s a "film" & more.mp4', "two\nlines $HOME.mp4", "-brücke über 雪.mp4")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    demo.render(folder, films=[0, 1, 2, 4], scale=0.25, shots=3, poses=20, with_broken=False)
    rows = list(csv.DictReader((folder / "sources.csv").open(newline="")))
    for row, name in zip(rows, STRANGE_NAMES, strict=False):
        (folder / row["path"]).rename(folder / name)
        row["path"] = name
    with (folder / "sources.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, rows[0])
        table.writeheader()
        table.writerows(rows)
    return folder


def project(folder, films):
    folder.mkdir()
    (folder / "films").symlink_to(films)
    (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


def start(folder):
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    command += ["--directory", str(folder), "--configfile", str(folder / "settings.yaml"), "--rerun-incomplete"]
    command += ["--nolock", "--workflow-profile", "none"]
    with (folder / "snakemake.log").open("a") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def finish(folder):
    status = start(folder).wait(timeout=900)
    assert status == 0, (folder / "snakemake.log").read_text()[-4000:]


def kill_in(stage, folder):
    """Kill Snakemake and its children without warning, shortly after the stage's first sign of life."""
    process = start(folder)
    seen = folder / "logs" / "telemetry" / stage
    deadline = time.monotonic() + 300
    while not seen.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.7)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive and seen.exists()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_killed_in_every_stage_nothing_is_lost(tmp_path, films):
    calm, killed = project(tmp_path / "undisturbed wörk", films), project(tmp_path / "killed wörk", films)
    finish(calm)
    hit = {stage.name: kill_in(stage.name, killed) for stage in STAGES}
    finish(killed)
    assert all(hit.values()), hit

    for name, path, key in (
        ("clips", "curate/clips.parquet", "clip_id"),
        ("cut_index", "cut/index.parquet", "clip_id"),
        ("captions", "caption/captions.parquet", "clip_id"),
        ("encode_index", "encode/index.parquet", "sample_id"),
    ):
        ours, theirs = (
            sorted(tables.read(name, folder / "results" / path).to_pylist(), key=lambda row: (row[key], row["outcome"]))
            for folder in (killed, calm)
        )
        assert len(ours) == len(theirs)
        assert [row[key] for row in ours] == [row[key] for row in theirs]
    for weights in ("raw", "ema"):
        ours, theirs = (
            load_file(folder / f"results/train/short/final/{weights}/diffusion_pytorch_model.safetensors")
            for folder in (killed, calm)
        )
        assert ours.keys() == theirs.keys()
        assert all((ours[key] == theirs[key]).all() for key in theirs)
    assert not [path for path in (killed / "results").rglob("*") if path.is_file() and path.name.startswith(".")]


@pytest.mark.slow
def test_a_second_snakemake_in_the_same_folder_is_refused(tmp_path, films):
    folder = project(tmp_path / "shared", films)
    first = start(folder)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "logs" / "telemetry").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert start(folder).wait(timeout=120) != 0
        assert "another process works here already" in (folder / "snakemake.log").read_text()
        assert first.poll() is None
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
