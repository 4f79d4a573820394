"""A rank that something else slows from outside: found in a live run on the cluster, named with its node and cause."""

import json
import os
import subprocess
import sys

import pytest

from slurm.site import finish, wait
from training import project

NICE = 5
"""A busy process at this niceness takes a quarter of its core, and the rank waits a scheduler's slice at every turn."""


def ranks_of(site) -> dict[str, int]:
    """Node -> process id of its rank."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/cmdline") as command, open(f"/proc/{entry}/environ") as environment:
                    words, variables = command.read().split("\0"), environment.read().split("\0")
                here = os.readlink(f"/proc/{entry}/cwd") == str(site.folder)
            except OSError:
                continue
            if here and "telemetry.sampler" not in " ".join(words) and words[0].endswith("python"):
                node = next((v.partition("=")[2] for v in variables if v.startswith("SLURMD_NODENAME=")), None)
                if node and "SLURM_PROCID" in " ".join(variables):
                    found[node] = int(entry)
    return found


def pin(process: int, core: int) -> None:
    """Keep all threads of a process on one core."""
    for thread in os.listdir(f"/proc/{process}/task"):
        os.sched_setaffinity(int(thread), {core})


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="each of the two ranks needs a core of its own")
def test_a_rank_slowed_from_outside_is_named_with_its_cause(site):
    configuration = project.make(site.folder, max_steps=300, checkpoint_every=1000, gauge_every=1000)
    recorded = json.loads(configuration.read_text()) | {"telemetry": {"enabled": True}}
    configuration.write_text(json.dumps(recorded))
    launcher = site.launch("train", 2, 1)
    wait("a step", 120, lambda: site.last_step() > 0)
    processes = wait("both ranks", 20, lambda: found if len(found := ranks_of(site)) == 2 else None)
    cores = dict(zip(sorted(processes), sorted(os.sched_getaffinity(0))[:2], strict=True))
    for node, process in processes.items():
        pin(process, cores[node])
    slow = sorted(processes)[1]
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=lambda: os.nice(NICE))
    try:
        pin(hog.pid, cores[slow])
        finish(launcher)
    finally:
        hog.kill()
        hog.wait()
    done = site.run(sys.executable, "-m", "brickreel", "report", "--config", "config.json")
    assert done.returncode == 0, done.stdout
    summary = json.loads((site.folder / "results/report/summary.json").read_text())
    (run,) = summary["runs"]
    (item,) = run["stragglers"]
    assert item["node"] == slow
    assert item["slower_pct"] > 10
    claim = next(finding["claim"] for finding in summary["findings"] if finding["rule"] == "straggler")
    assert slow in claim
    assert "waited for a core" in claim, run["hosts"]
    # The job is in the accounting, and beside what the recorder saw.
    stage = next(row for row in summary["stages"] if row["stage"] == "train")
    assert stage["in_slurm"]
    assert stage["slurm"]["jobs"] == 1
    assert stage["slurm"]["gpu_hours_allocated"] > 0
