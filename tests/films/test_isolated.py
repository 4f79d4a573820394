"""Whatever one film does to its process, the caller gets one sentence."""

import errno

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
