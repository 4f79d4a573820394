import subprocess
import sys

import pytest

from brickreel.cluster import lock

HOLD = "import sys, pathlib; from brickreel.cluster import lock; s = lock.acquire(pathlib.Path(sys.argv[1]), 'taken'); \
print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "a lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_who_holds_the_lock(holder, tmp_path):
    with pytest.raises(ValueError, match=f"taken by process {holder.pid} on "):
        lock.acquire(tmp_path / "a lock", "taken")


def test_a_killed_holder_leaves_nothing_to_clean_up(holder, tmp_path):
    holder.kill()
    holder.wait()
    lock.acquire(tmp_path / "a lock", "taken", patience_s=5).close()


def test_a_closed_lock_can_be_taken_again(tmp_path):
    lock.acquire(tmp_path / "b", "taken").close()
    lock.acquire(tmp_path / "b", "taken").close()
