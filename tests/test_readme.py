"""The README promises commands and files: they must be there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    dead = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert dead == []


def test_make_targets_of_the_documents_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for path in DOCUMENTS for name in re.findall(r"`make ([a-z-]+)", path.read_text(encoding="utf-8"))}
    named |= {
        name for path in DOCUMENTS for name in re.findall(r"^\s*make ([a-z-]+)", path.read_text(encoding="utf-8"), re.M)
    }
    assert {"demo", "test"} <= named <= targets


def test_commands_of_the_documents_exist():
    named = {
        name
        for path in DOCUMENTS
        for name in re.findall(r"(?:^|`|bin/)brickreel ([a-z][a-z-]+)", path.read_text(encoding="utf-8"), re.M)
    }
    listed = subprocess.run(
        [sys.executable, "-m", "brickreel", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert {name for name in named if not re.search(rf"^  {name} ", listed, re.M)} == set()


def test_folders_of_the_documents_exist():
    tree = re.search(r"```text\n(.*?)```", DOCUMENTS[0].read_text(encoding="utf-8"), re.S)
    assert tree
    names = re.findall(r"^([\w.]+(?:/[\w.]+)*/?)\s{2,}", tree.group(1), re.M)
    assert len(names) > 8
    assert [name for name in names if not (ROOT / name).exists()] == []
