import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from brickreel import files
from training import project as training_project

CONFIG = "runs: {demo: {}}\npreflight: {disk_mib: 1, quick: true}\n"

ATTEMPTS = "results/train/small/attempts.jsonl"


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


CONFIRM = """
import sys
from brickreel import config
from brickreel.cluster import distributed, tuning
from brickreel.stages import preflight
ranks = distributed.start(timeout_s=120)
tried = [tuning.Candidate(tuning.DEFAULT, {}, "what it does by itself"),
         tuning.Candidate("interface lo", {"GLOO_SOCKET_IFNAME": sys.argv[1]}, "gloo over one interface")]
found = tuning.Verdict("interface lo", 0.2, 0.01, "every repeat beats every one of the default")
try:
    told = preflight._confirm(config.load("config.json"), "small", found, tried, {}, ranks)
    print(told.reason)
except ConnectionError as error:
    print("not confirmed:", error)
distributed.stop()
"""


def confirmed(folder, interface):
    """What two local ranks say of a setting after real steps."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    own |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    own |= {"MASTER_PORT": str(20000 + os.getpid() % 9000), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", CONFIRM, interface]
    ranks = [
        subprocess.Popen(
            words, cwd=folder, env=own | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=200)[0].strip() for rank in ranks]
    assert said[0] == said[1]
    return said[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_steps_confirm_or_overrule_a_setting_also_without_snakemake(project):
    training_project.make(project)
    said = confirmed(project, "lo")
    assert re.search(r"20 real steps are [\d.]+ % faster|real steps are [\d.]+ ?% slower", said.replace("%", " %")), (
        said
    )
    assert (project / "results/settings/preflight-small.json").is_file()
    assert confirmed(project, "absent0").startswith("not confirmed: real steps failed: rank 0: status 1")


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


@pytest.mark.slow
def test_after_a_killed_launcher_the_next_one_waits_for_its_ranks_and_goes_on(project):
    training_project.make(project, max_steps=300, checkpoint_every=1000)
    words = brickreel("launch", "train", "--run", "small", "--config", "config.json")
    first = subprocess.Popen(words)
    _wait(lambda: training_project.step_rows(project))
    first.kill()
    first.wait()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    events = [(row["attempt"], row["event"]) for row in files.read_json_lines(ATTEMPTS)]
    assert events == [(0, "start"), (0, "end"), (1, "start"), (1, "end")]
    assert [row["step"] for row in training_project.step_rows(project)] == list(range(1, 301))


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
