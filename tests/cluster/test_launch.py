import json
import os
import signal
import subprocess
import sys
import time

import pytest

from brickreel.cluster import launch

CONFIG = "runs: {demo: {}}\npreflight: {disk_mib: 1, quick: true}\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "pro ject ü"
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(folder)
    return folder


def brickreel(*words):
    return [sys.executable, "-m", "brickreel", *words]


def test_two_local_ranks_work_together(project):
    done = subprocess.run(
        brickreel("launch", "preflight", "--run", "demo", "--tasks-per-node", "2", "--log", "logs/preflight/demo.log"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    health = json.loads((project / "results/preflight/demo/health.json").read_text())
    assert {"all_reduce 1 MiB", "clock offset", "versions"} - {check["name"] for check in health["checks"]} == {
        "clock offset"  # one node
    }
    assert health["simulated"]
    assert "all_reduce" in (project / "logs/preflight/demo.log").read_text()
    assert (project / "logs/preflight/demo/local_1.out").exists()


@pytest.mark.slow
def test_a_sweep_of_network_settings_is_kept_for_the_next_time(project):
    (project / "config.yaml").write_text(
        "runs: {demo: {}}\nbase: {transformer: {path: 'builtin:tiny'}}\npreflight: {disk_mib: 1, tune: true}\n"
    )
    words = brickreel("launch", "preflight", "--run", "demo", "--tasks-per-node", "2")
    first = subprocess.run(words, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    (kept,) = (project / "logs/preflight/tuning").glob("*.json")
    found = json.loads(kept.read_text())
    assert {len(scores) for scores in found["scores"].values()} == {3}
    assert "network settings:" in first.stderr
    second = subprocess.run(words, capture_output=True, text=True, check=False)
    assert second.returncode == 0
    assert "network settings:" not in second.stderr


def test_a_failing_stage_fails_with_its_own_sentence(project):
    done = subprocess.run(
        brickreel("launch", "preflight", "--run", "other"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "there is no run 'other'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupted_launcher_takes_its_ranks_along(project):
    (project / "config.yaml").write_text(CONFIG.replace("quick: true", "quick: false"))
    process = subprocess.Popen(
        brickreel("launch", "preflight", "--run", "demo", "--tasks-per-node", "1"), stderr=subprocess.PIPE
    )
    record = project / "results/preflight/demo/job.json"
    ranks = _wait(lambda: record.exists() and _children(process.pid))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not [pid for pid in ranks if _alive(pid)]


def test_ranks_end_when_whoever_launched_them_was_killed(project):
    (project / "config.yaml").write_text(CONFIG.replace("quick: true", "quick: false"))
    words = brickreel("launch", "preflight", "--run", "demo")
    parent = subprocess.Popen([sys.executable, "-c", f"import subprocess; subprocess.run({words!r})"])
    launcher = _wait(lambda: _children(parent.pid))[0]
    ranks = _wait(lambda: _children(launcher))
    parent.kill()
    parent.wait()
    _wait(lambda: not [pid for pid in [launcher, *ranks] if _alive(pid)])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["prefligt", "--run", "demo"], "there is no stage 'prefligt'"),
        (["preflight"], "give --run NAME, --shard"),
        (["preflight", "--run", "demo", "--nodes", "2"], "nodes must be 1"),
        (["preflight", "--run", "demo", "--runtime", "long"], "--runtime takes a whole number"),
        (["preflight", "--run", "demo", "--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_bad_input_is_one_sentence(project, words, sentence):
    done = subprocess.run(brickreel("launch", *words), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_training_keeps_away_from_unfit_nodes(project):
    folder = project / "results/preflight/demo"
    folder.mkdir(parents=True)
    health = {"verdict": "fail", "nodes": ["gpu1", "gpu2"], "exclude": ["gpu2"]}
    (folder / "health.json").write_text(json.dumps(health))
    assert launch.excluded_nodes("train", "demo") == ("gpu2",)
    assert launch.excluded_nodes("preflight", "demo") == ()
    # What is wrong on every node is not a node's fault: there must be nodes left to train on.
    (folder / "health.json").write_text(json.dumps(health | {"exclude": ["gpu1", "gpu2"]}))
    assert launch.excluded_nodes("train", "demo") == ()
    assert launch.excluded_nodes("train", "absent") == ()


def _children(pid):
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as stream:
            found += [int(word) for word in stream.read().split()]
    return found


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def _wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            found = condition()
        except OSError:
            found = None
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")
