"""The test cluster, started once per session and stopped at its end, and projects that live on it."""

import os

import pytest

from slurm.site import ROOT, SCRIPT, Site, missing_programs, running_cluster


def pytest_collection_modifyitems(items):
    """Everything in this folder needs the cluster."""
    for item in items:
        if item.path.is_relative_to(ROOT / "tests" / "slurm"):
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def cluster():
    missing = missing_programs()
    if missing and not os.environ.get("CI"):
        pytest.skip(f"Slurm is not installed here ({', '.join(missing)}): `sudo {SCRIPT} x install` installs it")
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def site(cluster, tmp_path):
    """A project's folder on the cluster, with the shipped `slurm/` in it."""
    site = Site(cluster, tmp_path / "project")
    yield site
    site.end()
    cluster.repair()
