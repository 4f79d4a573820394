import errno
import io
from pathlib import Path

import pytest

from brickreel.cluster import exits
from films import memory


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


@pytest.fixture
def mounts(tmp_path, monkeypatch):
    """A project on a node: `films` is a mount point, `results` leads to another file system, `clips` is a folder."""
    (tmp_path / "project/clips").mkdir(parents=True)
    (tmp_path / "project/clips/other.mp4").touch()
    (tmp_path / "project/films").mkdir()
    (tmp_path / "project/results").symlink_to(tmp_path / "scratch/results")
    monkeypatch.chdir(tmp_path / "project")


@pytest.mark.parametrize("name", ["films/a.mp4", "films/2024/a.mp4", "results/encode/00-0000.safetensors"])
def test_a_file_is_not_missed_where_its_file_system_is_not_mounted(mounts, verdict, name):
    with pytest.raises(FileNotFoundError) as raised:
        Path(name).read_bytes()
    exits.record("train", raised.value)
    assert not verdict.exists()
    with pytest.raises(FileNotFoundError, match="is a file system not mounted here") as raised:
        exits.unopened(name)
    assert exits.passes(raised.value)


@pytest.mark.parametrize("name", ["clips/a.mp4", "clips/2024/a.mp4", "a.mp4"])
def test_a_file_with_neighbours_is_missed(mounts, verdict, name):
    assert exits.unopened(name) == "cannot be opened: No such file or directory"
    with pytest.raises(FileNotFoundError) as raised:
        Path(name).read_bytes()
    exits.record("train", raised.value)
    assert verdict.exists()


def test_a_stage_has_not_run_only_where_results_are_seen(mounts, verdict):
    error = FileNotFoundError("results/plan/small/plan.json does not exist: run the plan stage first")
    exits.record("train", error)
    assert not verdict.exists()
    Path("results").unlink()
    exits.record("train", error)
    assert "run the plan stage first" in verdict.read_text()


def test_what_cannot_be_read_for_now_stays_an_error(monkeypatch, tmp_path):
    class Broken(io.BytesIO):
        def read(self, *_):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", lambda *_, **__: Broken())
    with pytest.raises(OSError, match="Input/output error"):
        exits.unopened("film.mp4")


def test_a_missing_file_costs_no_list_of_its_whole_folder(tmp_path):
    for number in range(3000):
        (tmp_path / f"{number}.mp4").touch()
    assert memory.peak(lambda: exits.unmounted(tmp_path / "gone.mp4")) < 50_000


def test_outside_a_job_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("BRICKREEL_VERDICT", raising=False)
    monkeypatch.chdir(tmp_path)
    exits.record("train", ValueError("x"))
    assert list(tmp_path.iterdir()) == []


def test_a_film_deleted_from_a_folder_of_its_own_is_not_taken_for_a_missing_mount(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "films" / name).mkdir(parents=True)
    missing = str(tmp_path / "films" / "a" / "a.mp4")
    assert exits.unmounted(missing)
    (tmp_path / "films" / "b" / "b.mp4").write_bytes(b"x")
    assert not exits.unmounted(missing)
    assert exits.unopened(missing) == "cannot be opened: No such file or directory"
