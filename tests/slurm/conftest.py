"""The test cluster, started once per session and stopped at its end, and projects that live on it."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from slurm.site import ROOT, SCRIPT, Cluster, Site

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd")


def pytest_collection_modifyitems(items):
    """Everything in this folder needs the cluster."""
    for item in items:
        if item.path.is_relative_to(ROOT / "tests" / "slurm"):
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def cluster():
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"Slurm is not installed here ({', '.join(missing)}): `sudo {SCRIPT} x install` installs it")
    # munge wants folders that everybody may pass through, and a short path for its socket: pytest's own are neither.
    above = Path(tempfile.mkdtemp(prefix="brickreel-"))
    above.chmod(0o755)
    cluster = Cluster(above / "cluster")
    started = subprocess.run([SCRIPT, cluster.folder, "start"], capture_output=True, text=True, check=False)
    try:
        assert started.returncode == 0, started.stderr
        yield cluster
    finally:
        subprocess.run([SCRIPT, cluster.folder, "stop"], check=True)
        above.rmdir()


@pytest.fixture
def site(cluster, tmp_path):
    """A project's folder on the cluster, with the shipped `slurm/` in it."""
    site = Site(cluster, tmp_path / "project")
    yield site
    site.end()
    cluster.repair()
