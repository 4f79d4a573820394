"""One set of versions, wherever it is written."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKED = {
    canonicalize_name(name): version
    for file in ("requirements.lock", "requirements-nodeps.lock")
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", (ROOT / file).read_text(), re.M)
}
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TORCH = re.search(r"^TORCH := torch==(\S+)", (ROOT / "Makefile").read_text(), re.M)[1]


def test_every_declared_dependency_is_locked_to_a_version_that_it_admits():
    for text in DECLARED["dependencies"]:
        wanted = Requirement(text)
        version = TORCH if wanted.name == "torch" else LOCKED[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version), text


def test_the_lock_is_complete():
    seen, open_names = set(), [canonicalize_name(Requirement(text).name) for text in DECLARED["dependencies"]]
    while open_names:
        name = open_names.pop()
        if name in seen:
            continue
        seen.add(name)
        assert name == "torch" or name in LOCKED, f"{name} is needed but not locked"
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if name != "torch" and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
                open_names.append(canonicalize_name(needed.name))


def test_conda_users_get_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert f"torch=={TORCH}" in pip
    assert "-r requirements.lock" in pip


def test_the_packages_that_the_project_promises_are_there():
    promised = ("snakemake", "submitit", "torch", "colossalai", "diffusers", "openai", "ffmpeg-python", "nvidia-ml-py")
    assert all(name == "torch" or name in LOCKED for name in promised)
    assert any("flash-attn" in text for text in DECLARED["optional-dependencies"]["flash"])
