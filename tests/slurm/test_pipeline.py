"""The whole graph through `snakemake --profile slurm`, training on two nodes with FSDP2 and with ColossalAI, and
Snakemake killed while both train."""

import os
import signal
import subprocess
import sys

import pytest
import yaml

from brickreel import files
from slurm.site import ROOT, wait

RUNS = {"fsdp2": "fsdp2", "colossalai": "colossalai"}
RUN = {
    "data": {"time": "poses", "buckets": {"64p": {8: [1.0, 4], 1: [1.0, 8]}}},
    "schedule": {"kind": "constant", "lr": 4.0e-4},
    "max_steps": 60,
    "micro_batches": 4,
    "precision": "fp32",
    "grad_checkpoint": False,
    "checkpoint_every": 20,
    "gauge_every": 30,
}


def settings():
    return {
        "project": {"name": "on-slurm", "shards": 2, "runs": list(RUNS)},
        "ingest": {"sources": "films/sources.csv"},
        "curate": {"min_poses": 8},
        "preflight": {"disk_mib": 4},
        "runs": {name: RUN | {"backend": backend} for name, backend in RUNS.items()},
        "sample": {"frames": 8, "steps": 5, "resolution": [64, 64], "prompts": ["a red brick"], "checkpoints": "final"},
    }


def profile(path):
    """The shipped profile at the test cluster's size."""
    read = yaml.safe_load(path.read_text())
    read["default-resources"] |= {"mem_mb": 1500, "cpus_per_task": 1, "runtime": 20}
    read["slurm-init-seconds-before-status-checks"] = 5
    read["latency-wait"] = 20
    for stage, resources in read["set-resources"].items():
        resources["runtime"] = 20
        resources["mem_mb"] = 1500
        if stage in ("preflight", "train"):
            resources |= {"nodes": 2, "tasks_per_node": 2, "cpus_per_task": 1, "gres": "gpu:2", "mem_mb": 4000}
    path.write_text(yaml.safe_dump(read))


def snakemake(site, *words):
    demo = str(ROOT / "config" / "demo.yaml")
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "--snakefile", str(ROOT / "Snakefile")]
    return site.start(*command, "--configfile", demo, "settings.yaml", "--directory", str(site.folder), *words)


@pytest.mark.timeout(1800)
def test_the_graph_runs_on_slurm_and_outlives_snakemake(site):
    words = [sys.executable, "-m", "brickreel", "demo-films", "--out", "films", "--scale", "0.5", "--shots", "3"]
    subprocess.run([*words, "--poses", "24"], cwd=site.folder, check=True, capture_output=True)
    (site.folder / "settings.yaml").write_text(yaml.safe_dump(settings()))
    profile(site.folder / "slurm" / "config.yaml")

    first = snakemake(site)
    steps = site.folder / "results" / "train"
    wait("steps of both runs", 900, lambda: all(list(steps.glob(f"{run}/steps/*.jsonl")) for run in RUNS))
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    ids = {run: files.read_json(steps / run / "job.json")["job_id"] for run in RUNS}

    second = snakemake(site)
    output = second.communicate(timeout=1200)[0]
    assert second.returncode == 0, output[-6000:]
    for run in RUNS:
        assert f"following Slurm job {ids[run]}" in (site.folder / f"logs/train/{run}.log").read_text()
        starts = [row for row in files.read_json_lines(steps / run / "attempts.jsonl") if row["event"] == "start"]
        assert [(row["backend"], row["world_size"]) for row in starts] == [(RUNS[run], 4)]
        assert (site.folder / f"results/export/{run}/model_index.json").is_file()
    assert (site.folder / "results/report/index.html").is_file()

    accounted = site.cluster.ask("sacct", "-nPX", "-S", "now-1hours", "-o", "JobID,State,NNodes,Partition")
    rows = {line.split("|")[0]: line.split("|")[1:] for line in accounted.splitlines()}
    assert all(rows[job_id] == ["COMPLETED", "2", "gpu"] for job_id in ids.values())

    third = snakemake(site, "--dry-run")
    assert "Nothing to be done" in third.communicate(timeout=120)[0]


def test_what_failed_is_said_last(site):
    (site.folder / "films").mkdir()
    (site.folder / "films/sources.csv").write_text("path,licence\nnone.mp4,CC0\n")
    (site.folder / "films/other.mp4").touch()  # the file system is there
    (site.folder / "settings.yaml").write_text(yaml.safe_dump(settings()))
    profile(site.folder / "slurm" / "config.yaml")
    failed = snakemake(site, "--until", "ingest", "--retries", "0")
    output = failed.communicate(timeout=240)[0]
    assert failed.returncode == 1, output[-3000:]
    below = output.partition("report: results/report/index.html")[2]
    assert "logs/ingest/all.log ends with: " in below, output[-3000:]
    assert "none.mp4" in below
