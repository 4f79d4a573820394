import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brickreel import config, files
from brickreel.cluster import distributed, hang, slurm
from brickreel.cluster.hang import Guard
from brickreel.stages import train
from training import project


def step_log(folder, age_s):
    folder.mkdir(exist_ok=True)
    path = folder / "1-0.jsonl"
    path.write_text("{}\n")
    os.utime(path, (time.time() - age_s, time.time() - age_s))


def test_a_job_that_takes_steps_does_not_hang(tmp_path):
    step_log(tmp_path, age_s=5)
    guard = Guard(tmp_path, limit_s=60)
    guard.running_since = time.time() - 1000
    assert not guard.hangs("RUNNING")


def test_a_job_without_a_step_for_too_long_hangs_once_per_limit(tmp_path):
    step_log(tmp_path, age_s=500)
    guard = Guard(tmp_path, limit_s=60)
    guard.running_since = time.time() - 700
    assert guard.hangs("RUNNING")
    assert not guard.hangs("RUNNING")


def test_an_attempt_has_longer_for_its_first_step(tmp_path):
    step_log(tmp_path, age_s=5000)
    guard = Guard(tmp_path, limit_s=60)
    guard.running_since = time.time() - 500
    assert not guard.hangs("RUNNING")
    guard.running_since = time.time() - 1000
    assert guard.hangs("RUNNING")


@pytest.mark.parametrize("limit_s", [0, 60, 1800])
def test_ranks_of_a_training_job_wait_until_the_guard_has_seen_that_it_hangs(tmp_path, monkeypatch, limit_s):
    waits = {}

    def start(**given):
        waits.update(given)
        raise ConnectionError("enough")

    monkeypatch.setattr(distributed, "start", start)
    monkeypatch.setenv("BRICKREEL_HANG_S", str(limit_s))
    monkeypatch.chdir(tmp_path)
    project.make(tmp_path)
    with pytest.raises(ConnectionError):
        train.run(config.load("config.json"), "small")
    assert waits["evidence"] == Path("logs/train/small")
    quiet_s = waits["patience_s"] - 120
    unbegun = Guard(tmp_path / "none", limit_s, expected=True)
    unbegun.running_since = time.time() - quiet_s
    step_log(tmp_path / "steps", age_s=quiet_s)
    begun = Guard(tmp_path / "steps", limit_s)
    begun.running_since = time.time() - quiet_s - 1000
    assert [guard.hangs("RUNNING") for guard in (unbegun, begun)] == [limit_s > 0] * 2


def test_waiting_in_the_queue_and_starting_again_do_not_count(tmp_path):
    step_log(tmp_path, age_s=500)
    guard = Guard(tmp_path, limit_s=60)
    guard.running_since = time.time() - 1000
    assert not guard.hangs("PENDING")
    assert not guard.hangs("RUNNING")


def test_a_training_job_that_never_takes_its_first_step_hangs(tmp_path):
    guard = Guard(tmp_path / "none", limit_s=60, expected=True)
    guard.running_since = time.time() - 500
    assert not guard.hangs("RUNNING")
    guard.running_since = time.time() - 1000
    assert guard.hangs("RUNNING")


def test_stages_without_steps_and_a_limit_of_zero_never_hang(tmp_path):
    guard = Guard(tmp_path / "none", limit_s=0.001)
    guard.running_since = time.time() - 1000
    assert not guard.hangs("RUNNING")
    step_log(tmp_path / "steps", age_s=500)
    guard = Guard(tmp_path / "steps", limit_s=0)
    guard.running_since = time.time() - 1000
    assert not guard.hangs("RUNNING")


def final_weights_are_due(folder, step):
    files.write_json(folder / "settings.json", {"max_steps": 300})
    (folder / f"checkpoints/step-{step:08d}").mkdir(parents=True)
    step_log(folder / "steps", age_s=5000)
    guard = Guard(folder / "steps", limit_s=60, expected=True)
    guard.running_since = time.time() - 4000
    return guard


def test_writing_the_final_weights_takes_no_steps_and_is_no_hang(tmp_path):
    guard = final_weights_are_due(tmp_path, 300)
    assert not guard.hangs("RUNNING")
    guard.running_since = time.time() - 10_000
    step_log(tmp_path / "steps", age_s=6000)
    assert not guard.hangs("RUNNING")


def test_the_final_weights_do_not_take_for_ever_either(tmp_path):
    guard = final_weights_are_due(tmp_path, 300)
    guard.running_since = time.time() - hang.FINAL_S - 10
    step_log(tmp_path / "steps", age_s=hang.FINAL_S + 5)
    assert guard.hangs("RUNNING")
    assert hang.FINAL_S == train.FINAL_WAIT_S


def test_before_the_last_checkpoint_a_run_hangs_as_ever(tmp_path):
    assert final_weights_are_due(tmp_path, 200).hangs("RUNNING")


@pytest.fixture
def asked(monkeypatch):
    """A Slurm whose job 7 was put back twice and runs on one node; what it is asked, without how often."""
    words = []

    def ask(*given):
        if given[:2] == ("scontrol", "-o"):
            return subprocess.CompletedProcess(given, 0, "JobId=7 Requeue=1 Restarts=2 BatchFlag=1", "")
        words.append(given)
        return subprocess.CompletedProcess(given, 0, "", "")

    monkeypatch.setattr(slurm, "ask", ask)
    monkeypatch.setattr(hang, "ANSWERS_S", 0.0)
    return words


def test_a_job_that_hangs_is_put_back_as_long_as_the_site_allows_it(asked, tmp_path):
    hang.restart("7", tmp_path, 1, max_requeues=3)
    assert asked[-1] == ("scontrol", "requeue", "7")


def test_the_ranks_of_a_hang_are_those_that_run_and_not_those_that_were_asked_for(monkeypatch, tmp_path, caplog):
    """Two of four nodes are left: their four ranks say what they know."""

    def ask(*given):
        if given[0] == "srun":
            prefix = next(word for word in given if "/flight-" in word)
            for rank in range(4):
                entries = [{"record_id": 4, "profiling_name": "gloo:all_reduce", "is_p2p": False}]
                files.write_json(f"{prefix}-{rank}.json", {"entries": entries})
        return subprocess.CompletedProcess(given, 0, "2" if given[0] == "squeue" else "Restarts=0", "")

    monkeypatch.setattr(slurm, "ask", ask)
    monkeypatch.setattr(hang, "ANSWERS_S", 0.0)
    monkeypatch.setattr("brickreel.cluster.hang.logger.propagate", True)
    caplog.set_level("INFO")
    hang.restart("7", tmp_path, tasks_per_node=2, max_requeues=3)
    assert "all ranks stand at the same collective" in caplog.text
    assert "did not answer" not in caplog.text


READS = """
import ctypes, sys
class Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
here = ctypes.create_string_buffer(4)
libc = ctypes.CDLL(None, use_errno=True)
libc.process_vm_readv.restype = ctypes.c_ssize_t
mine, its = Part(ctypes.addressof(here), 4), Part(int(sys.argv[2]), 4)
libc.process_vm_readv(int(sys.argv[1]), ctypes.byref(mine), 1, ctypes.byref(its), 1, 0)
print(here.raw)
"""
RANK = """
import ctypes, os, sys
from brickreel.cluster import hang
hang.let_stacks_be_read()
word = ctypes.create_string_buffer(b"mine")
print(ctypes.addressof(word), flush=True)
sys.stdin.read()
"""


SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")


@pytest.mark.skipif(
    os.getuid() == 0 or not SCOPE.is_file() or SCOPE.read_text().strip() != "1",
    reason="without ptrace_scope 1, or as root, anybody may, or nobody",
)
def test_a_process_that_is_no_parent_may_read_a_ranks_stacks():
    """As py-spy reads them; without the rank's consent this fails."""
    rank = subprocess.Popen([sys.executable, "-c", RANK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        address = rank.stdout.readline().strip()
        words = [sys.executable, "-c", READS, str(rank.pid), address]
        assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "b'mine'\n"
    finally:
        rank.kill()
        rank.communicate()


def test_a_job_that_hangs_too_often_is_cancelled_after_its_stacks_were_kept(asked, tmp_path):
    with pytest.raises(ValueError, match=r"job 7 takes no steps, and it was put back 2 times .* it was cancelled"):
        hang.restart("7", tmp_path, 1, max_requeues=2)
    assert [words[0] for words in asked] == ["squeue", "srun", "scancel"]
