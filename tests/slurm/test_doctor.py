"""`brickreel doctor` on the real cluster: the shipped profile does not fit it, the written one does."""

import json
import sys

import yaml


def doctor(site, *words):
    return site.run(sys.executable, "-m", "brickreel", "doctor", *words)


def test_the_doctor_writes_a_profile_that_fits(site):
    first = doctor(site, "--no-jobs")
    assert first.returncode == 1
    assert "`nodes` asks for 4 nodes, partition gpu has 2" in first.stdout
    assert "Traceback" not in first.stdout
    written = doctor(site, "--write", "--json", "doctor.json")
    assert written.returncode == 0, written.stdout
    profile = yaml.safe_load((site.folder / "slurm/config.yaml").read_text())
    assert profile["set-resources"]["train"]["nodes"] == 2
    assert profile["set-resources"]["train"]["tasks_per_node"] == 8
    assert profile["default-resources"]["slurm_account"] == "proj"
    assert "BRICKREEL_GPU=H100" in (site.folder / "slurm/site.env").read_text()
    found = json.loads((site.folder / "doctor.json").read_text())
    looked = {check["node"] for check in found["checks"] if check["name"] == "file system"}
    assert looked <= {"cpu1", "cpu2", "gpu1", "gpu2"}
    assert len(looked) == 2
    again = doctor(site, "--no-jobs")
    assert again.returncode == 0, again.stdout
    assert "slurm/config.yaml needs no change" in again.stdout


def test_a_folder_that_nodes_do_not_see_is_named(site):
    """A tmpfs over the project's folder on one node hides it there, as a local disk does on a real cluster."""
    site.cluster.on_node("cpu1", "mount", "-t", "tmpfs", "none", str(site.folder))
    site.cluster.on_node("cpu2", "mount", "-t", "tmpfs", "none", str(site.folder))
    try:
        done = doctor(site)
    finally:
        site.cluster.on_node("cpu1", "umount", str(site.folder))
        site.cluster.on_node("cpu2", "umount", str(site.folder))
    assert done.returncode == 1
    assert f"a node does not see {site.folder}" in done.stdout
