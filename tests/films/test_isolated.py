"""Whatever one film does to its process, the caller gets one sentence."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brickreel.films import isolated
from films import deeds

LIMITS = isolated.Limits(seconds=20, stall_s=10, memory_gib=4)


def test_result_and_progress_come_back():
    seen = []
    assert isolated.call(deeds.work, (21,), LIMITS, seen.append) == 42
    assert seen == [21]


@pytest.mark.parametrize(
    ("function", "limits", "words"),
    [
        (deeds.complain, LIMITS, "is no film"),
        (deeds.crash, LIMITS, r"crashes the decoder \(signal 11\)"),
        (deeds.hang, LIMITS._replace(stall_s=0.3), "hangs: no progress"),
        (deeds.never_end, LIMITS._replace(seconds=0.5), "took longer than the limit"),
        (deeds.eat_memory, LIMITS._replace(memory_gib=2), "needs more than 2 GiB"),
    ],
)
def test_every_end_is_a_sentence(function, limits, words):
    with pytest.raises(ValueError, match=words):
        isolated.call(function, (), limits)


def test_a_full_disk_is_no_fault_of_the_film():
    with pytest.raises(OSError, match="No space left") as caught:
        isolated.call(deeds.fill_the_disk, (), LIMITS)
    assert caught.value.errno == errno.ENOSPC


def test_signs_of_progress_are_as_rare_as_is_enough(monkeypatch):
    seen = []
    pulse = isolated.Pulse(seen.append)
    pulse(1)
    monkeypatch.setattr(isolated, "PULSE_S", 0)
    pulse(2)
    assert seen == [2]
    isolated.Pulse(None)(3)


def test_nothing_outlives_the_caller(tmp_path):
    code = f"isolated.call(deeds.hang_with_ffmpeg, ({str(tmp_path)!r},), isolated.Limits(60, 60, 4))"
    caller = subprocess.Popen(
        [sys.executable, "-c", f"from brickreel.films import isolated; from films import deeds; {code}"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        assert within(50, (tmp_path / "pids").exists)
    finally:
        caller.kill()
        caller.wait()
    for process in (tmp_path / "pids").read_text().split():
        assert within(20, lambda process=process: ended(process))


def within(seconds, true):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def ended(process):
    try:
        # Behind the name in brackets; who ought to collect a zombie is not the matter here.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
