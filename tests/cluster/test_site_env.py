import os
import shutil
import subprocess
from pathlib import Path

import pytest

from brickreel.cluster import site_env

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in site_env.Site._fields:
        monkeypatch.delenv(f"BRICKREEL_{name.upper()}", raising=False)


def test_the_shipped_file_holds_the_documented_defaults():
    assert site_env.read(REPOSITORY / "slurm/site.env") == site_env.Site()


def test_shell_that_is_not_ours_is_passed_over(tmp_path):
    path = tmp_path / "site.env"
    path.write_text("module load cuda\nexport BRICKREEL_HANG_S='60' # a minute\n. other.sh\nNCCL_DEBUG=WARN\n")
    assert site_env.read(path).hang_s == 60.0


def test_the_environment_wins(tmp_path, monkeypatch):
    path = tmp_path / "site.env"
    path.write_text("BRICKREEL_ON_INTERRUPT=cancel\n")
    monkeypatch.setenv("BRICKREEL_ON_INTERRUPT", "leave")
    assert site_env.read(path).on_interrupt == "leave"


@pytest.mark.parametrize("line", ["BRICKREEL_POLL_S=soon", "BRICKREEL_ON_INTERRUPT=perhaps"])
def test_a_wrong_value_is_named(tmp_path, line):
    path = tmp_path / "site.env"
    path.write_text(line)
    with pytest.raises(ValueError, match=line):
        site_env.read(path)


def test_jobs_and_launcher_agree_on_whose_word_counts(tmp_path):
    """slurm/job.sh, sourced by bash as every job does: the environment wins over site.env there too."""
    (tmp_path / "slurm").mkdir()
    shutil.copy(REPOSITORY / "slurm/job.sh", tmp_path / "slurm/job.sh")
    (tmp_path / "slurm/site.env").write_text("BRICKREEL_MAX_REQUEUES=10\nBRICKREEL_POLL_S=7\nOTHER='a b'\n")
    script = '. slurm/job.sh; echo "$BRICKREEL_MAX_REQUEUES|$BRICKREEL_POLL_S|$OTHER|$BRICKREEL_NOTE"'
    given = {"SLURM_JOB_ID": "7", "BRICKREEL_MAX_REQUEUES": "1", "BRICKREEL_NOTE": "it's $HOME"}
    own = {name: value for name, value in os.environ.items() if not name.startswith("BRICKREEL")}
    words = ["bash", "-c", script]
    done = subprocess.run(words, cwd=tmp_path, env=own | given, capture_output=True, text=True, check=True)
    assert done.stdout == "1|7|a b|it's $HOME\n"
