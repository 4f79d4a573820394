import os
import time

from brickreel.cluster.hang import Guard


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
