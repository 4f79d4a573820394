"""The recorder beside a real process: what it measures, and what is left of it after every kind of death."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from brickreel.config import Telemetry
from brickreel.telemetry import digest, recorder, recordings
from telemetry import nvml

BURN = "import time\nwhile time.process_time() < {}: pass"
RECORDED = """
import sys, time
from brickreel.config import Telemetry
from brickreel.telemetry import recorder
with recorder.recording("train", "run", Telemetry(period_s=0.1)):
    print("started", flush=True)
    {}
"""


def start(folder, body, **environment):
    process = subprocess.Popen(
        [sys.executable, "-c", RECORDED.format(body)],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"SLURMD_NODENAME": "node7"} | environment,
    )
    assert process.stdout.readline() == "started\n"
    return process


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def sampler_of(folder):
    """The sampler's process id: the one whose command line names this folder's file."""
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/cmdline") as stream:
                    words = stream.read()
                if "telemetry.sampler" in words and os.readlink(f"/proc/{entry}/cwd") == str(folder):
                    return int(entry)
            except OSError:
                continue
    return None


def only(folder):
    (path,) = recordings.paths(folder / "logs/telemetry")
    return path


def test_a_stage_is_recorded_with_its_children(tmp_path):
    body = f"import subprocess; subprocess.run([sys.executable, '-c', {BURN.format(0.6)!r}]); time.sleep(0.3)"
    assert start(tmp_path, body).wait(30) == 0
    found = recordings.read(only(tmp_path))
    assert (found.stage, found.part, found.attempt, found.node) == ("train", "run", 1, "node7")
    host = found.devices[""]
    assert np.nanmax(host["tree_cpu_s"]) >= 0.5
    assert np.nanmax(host["tree_processes"]) >= 2
    assert len(host["time_s"]) >= 5


def test_a_finished_recording_is_a_parquet_file_of_the_same_numbers(tmp_path):
    assert start(tmp_path, "time.sleep(0.5)").wait(30) == 0
    assert only(tmp_path).name == "1-node7.parquet"
    assert not list((tmp_path / "logs/telemetry/train/run").glob("*.err")), "an empty error file says nothing"


def test_attempts_are_numbered(tmp_path):
    for _ in range(2):
        assert start(tmp_path, "pass").wait(30) == 0
    assert [path.stem for path in recordings.paths(tmp_path / "logs/telemetry")] == ["1-node7", "2-node7"]


def test_after_a_kill_of_the_stage_the_recording_is_finished(tmp_path):
    process = start(tmp_path, "time.sleep(60)")
    process.kill()
    killed_s = time.time()
    process.wait()
    wait_for(lambda: sampler_of(tmp_path) is None)
    found = recordings.read(only(tmp_path))
    assert found.span_s[1] >= killed_s, "the last sample is taken after the end"


def has_a_sample(path):
    try:
        return bool(recordings.read(path).devices)
    except (ValueError, FileNotFoundError):
        return False


def test_after_a_kill_of_the_sampler_every_batch_is_readable(tmp_path):
    process = start(tmp_path, "time.sleep(60)")
    path = tmp_path / "logs/telemetry/train/run/1-node7.arrow"
    wait_for(lambda: has_a_sample(path))
    os.kill(sampler_of(tmp_path), signal.SIGKILL)
    process.kill()
    process.wait()
    found = recordings.read(path)
    assert found.span_s[1] >= found.span_s[0]
    assert len(found.devices[""]["time_s"]) >= 1


def test_gpus_are_recorded_by_every_second_sample_at_the_latest(tmp_path):
    library = nvml.build(tmp_path)
    script = nvml.script(tmp_path, "0 sm 0 80", "0 power 0 500", "1 sm 0 60", "1 power 0 500", "0 xid 0.2 79")
    process = start(tmp_path, "time.sleep(2)", LD_LIBRARY_PATH=str(library), NVML_MOCK=str(script))
    assert process.wait(30) == 0
    found = recordings.read(only(tmp_path))
    assert found.gpus == ["gpu0", "gpu1"]
    assert np.nanmean(found.devices["gpu1"]["sm_active_pct"]) == pytest.approx(60, abs=0.2)
    assert [(e.device, e.detail) for e in found.events if e.event == "xid"] == [("gpu0", "79")]


def test_what_was_not_measured_is_said(tmp_path):
    assert start(tmp_path, "time.sleep(0.3)").wait(30) == 0
    events = recordings.read(only(tmp_path)).events
    assert any(event.event == "not_measured" and event.detail.startswith("gpu:") for event in events)


def test_a_recorder_that_cannot_start_does_not_stop_the_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").write_text("a file where the folder should be")
    done = []
    with recorder.recording("train", "run", Telemetry()):
        done.append(True)
    assert done == [True]


def test_nothing_is_recorded_when_it_is_switched_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with recorder.recording("train", "run", Telemetry(enabled=False)):
        pass
    assert not (tmp_path / "logs").exists()


def test_two_recorders_never_share_a_file(tmp_path):
    assert {recorder.claim(tmp_path, "a").name for _ in range(3)} == {"1-a.arrow", "2-a.arrow", "3-a.arrow"}


def test_a_strange_node_name_stays_a_file_name():
    assert recorder.file_name("../node 1/-x") == ".._node_1__x"


def test_a_name_with_hyphens_is_the_same_in_the_record_as_in_the_logs(tmp_path):
    assert start(tmp_path, "pass", SLURMD_NODENAME="ip-10-0-0-1").wait(30) == 0
    path = only(tmp_path)
    assert path.name == "1-ip_10_0_0_1.parquet"
    assert recordings.read(path).node == "ip-10-0-0-1"


def test_a_suspended_recorder_goes_on_in_its_own_file(tmp_path):
    process = start(tmp_path, "time.sleep(60)")
    path = tmp_path / "logs/telemetry/train/run/1-node7.arrow"
    wait_for(lambda: has_a_sample(path))
    sampler = sampler_of(tmp_path)
    os.kill(sampler, signal.SIGSTOP)
    os.utime(path, (0, time.time() - 3600))
    digest.read_all(tmp_path / "logs/telemetry", [], settle=True)
    assert path.exists()
    continued_s = time.time()
    os.kill(sampler, signal.SIGCONT)
    process.kill()
    process.wait()
    wait_for(lambda: only(tmp_path).suffix == ".parquet")
    assert recordings.read(only(tmp_path)).span_s[1] >= continued_s
