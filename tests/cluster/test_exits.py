import errno

import pytest

from brickreel.cluster import exits


@pytest.fixture
def verdict(tmp_path, monkeypatch):
    monkeypatch.setenv("BRICKREEL_VERDICT", str(tmp_path / "verdicts" / "7-0"))
    return tmp_path / "verdicts" / "7-0"


@pytest.mark.parametrize("error", [ValueError("a wrong setting"), FileNotFoundError(errno.ENOENT, "no such file", "x")])
def test_what_would_come_again_is_a_verdict(verdict, error):
    exits.record("train", error)
    assert verdict.read_text() == f"brickreel train: {error}\n"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("a peer is gone"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(errno.EIO, "Input/output error"),
        TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
    ],
)
def test_trouble_that_passes_is_none(verdict, error):
    exits.record("train", error)
    assert not verdict.exists()


def test_outside_a_job_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("BRICKREEL_VERDICT", raising=False)
    monkeypatch.chdir(tmp_path)
    exits.record("train", ValueError("x"))
    assert list(tmp_path.iterdir()) == []
