"""A shard that is at work already is waited for."""

import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from brickreel import config, running


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_shard_waits_for_the_process_that_is_at_it_and_another_shard_does_not(tmp_path):
    held = running._alone("cut", {"shard": running.Shard(1, 2)})
    script = "from brickreel import running; running.set_up_logging(); "
    script += "running._alone('cut', {{'shard': running.Shard({}, 2)}})"
    other = subprocess.run([sys.executable, "-c", script.format(0)], capture_output=True, text=True, timeout=60)
    assert other.returncode == 0
    assert other.stderr == ""
    same = subprocess.Popen([sys.executable, "-c", script.format(1)], stderr=subprocess.PIPE, text=True)
    said = same.stderr.readline()
    assert "cut: shard 01 is worked on by process" in said
    assert same.poll() is None
    held.close()
    assert same.wait(30) == 0


STUCK = """
import threading, time
from brickreel import running
from brickreel.cluster import exits

def act():
    threading.Thread(target=time.sleep, args=(600,)).start()
    exits.STUCK.set()
    if RAISES:
        raise ValueError("a sentence")

running.guarded("preflight", False, act)
"""


@pytest.mark.parametrize("raises", [True, False])
def test_a_process_with_a_thread_that_never_ends_ends_all_the_same(raises):
    done = subprocess.run([sys.executable, "-c", STUCK.replace("RAISES", str(raises))], timeout=60, check=False)
    assert done.returncode == int(raises)


SPARED = """
import sys
if PROGRAM:
    import brickreel.running
import brickreel.models.stdit2
from diffusers.utils import is_bitsandbytes_available as in_diffusers

print("bitsandbytes" in sys.modules, in_diffusers(), bool(find_spec("bitsandbytes")))
"""


@pytest.mark.skipif("bitsandbytes" not in packages_distributions(), reason="comes with ColossalAI")
@pytest.mark.parametrize("program", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_only_brickreels_own_programs_spare_themselves_the_import_of_bitsandbytes(program):
    """What is left out of diffusers is there for all others, such as ColossalAI."""
    script = "from importlib.util import find_spec\n" + SPARED.replace("PROGRAM", str(program))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == [str(not program), str(not program), "True"]


def test_without_a_configuration_a_stage_takes_the_graphs_settings():
    assert running._usual("report", None) == (Path("config.yaml"),)
    config.write_settings(config.load({"runs": {"a": {}}}), "sample", "a")
    assert running._usual("sample", "a") == (config.settings_path("sample", "a"),)
    Path("config.yaml").touch()
    assert running._usual("sample", "a") == (Path("config.yaml"),)


def test_what_works_on_one_run_does_not_wait_for_another_or_for_a_checkpoints_samples():
    with running._alone("sample", {"run": "a"}), running._alone("sample", {"run": "a", "checkpoint": "step-2"}):
        running._alone("sample", {"run": "b"}).close()
    running._alone("report", {}).close()
    assert sorted(path.name for path in Path("logs").rglob("*.lock")) == [
        "a-step-2.lock",
        "a.lock",
        "all.lock",
        "b.lock",
    ]
