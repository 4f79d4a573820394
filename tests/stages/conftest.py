"""The films' stages run once; each test works on a copy."""

import os
import shutil

import pytest

from films import project


@pytest.fixture(scope="session")
def finished_films(tmp_path_factory):
    """A project after `cut`."""
    folder = tmp_path_factory.mktemp("project")
    before = os.getcwd()
    os.chdir(folder)
    try:
        project.films(folder)
        project.run()
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def films_project(finished_films, tmp_path, monkeypatch):
    """The working folder: a copy of the finished project."""
    folder = tmp_path / "project"
    shutil.copytree(finished_films, folder)
    monkeypatch.chdir(folder)
    return folder
