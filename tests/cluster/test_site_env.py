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
