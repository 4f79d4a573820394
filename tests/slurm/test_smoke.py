"""The short proof that brickreel works on a Slurm cluster; continuous integration runs it on every change."""

import json

from slurm.site import finish, wait
from training import project


def test_smoke_training_on_two_nodes_survives_a_requeue(site):
    project.make(site.folder, max_steps=30, checkpoint_every=2)
    launcher = site.launch("train")
    job_id = site.job_id()
    wait("a checkpoint", 120, site.checkpoints)
    site.cluster.ask("scontrol", "requeue", job_id)
    output = finish(launcher)
    assert site.restarts(job_id) == 1
    assert f"Slurm job {job_id} is running on gpu[1-2]" in output
    first, second = (row for row in site.attempts() if row["event"] == "start")
    assert first["nodes"] == second["nodes"] == ["gpu1", "gpu1", "gpu2", "gpu2"]
    rows = site.steps()
    assert {row["rank"] for row in rows} == {0, 1, 2, 3}
    assert {row["step"] for row in rows} == set(range(1, 31))
    assert min(row["step"] for row in rows if row["attempt"] == 1) == second["first_step"] > 1
    assert (site.folder / "results/train/small/final/ema/diffusion_pytorch_model.safetensors").is_file()
    accounted = site.cluster.ask("sacct", "-nPX", "-j", job_id, "-o", "JobName,State,NNodes,AllocTRES")
    assert accounted.startswith("train-small|COMPLETED|2|")
    assert "gres/gpu=4" in accounted


def test_smoke_preflight_on_two_nodes(site):
    project.make(site.folder)
    output = finish(site.launch("preflight"))
    health = json.loads((site.folder / "results/preflight/small/health.json").read_text())
    assert health["verdict"] == "pass", output
    assert {check["node"] for check in health["checks"]} == {"all", "gpu1", "gpu2"}
    assert {"clock offset", "dataset", "versions", "all_reduce 1 MiB"} <= {check["name"] for check in health["checks"]}
