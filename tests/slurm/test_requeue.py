"""Training through what clusters do to jobs: preemption, time limits, lost nodes, ranks that die or hang."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from slurm.site import finish, wait
from training import project

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def endless(site):
    """A run that trains until the test ends it."""
    project.make(site.folder, max_steps=100_000, checkpoint_every=3, gauge_every=1000)
    return site


def attempt_starts(site):
    return [row for row in site.attempts() if row["event"] == "start"]


def second_attempt_steps(site, seconds=120):
    """Wait for steps of the second attempt and return its first one."""
    wait("steps of a second attempt", seconds, lambda: [row for row in site.steps() if row["attempt"] == 1])
    return attempt_starts(site)[1]["first_step"]


def last_step_of_first_attempt(site):
    return max(row["step"] for row in site.steps() if row["attempt"] == 0)


def test_a_signalled_preemption_loses_no_step(endless):
    endless.launch("train")
    job_id = endless.job_id()
    wait("a few steps", 120, lambda: endless.last_step() > 4)
    endless.cluster.ask("scancel", "--signal=USR2", job_id)
    assert second_attempt_steps(endless) == last_step_of_first_attempt(endless) + 1
    assert endless.restarts(job_id) == 1
    end = next(row for row in endless.attempts() if row["event"] == "end")
    assert (end["outcome"], end["attempt"]) == ("dropped", 0)


def test_a_batch_script_trains_through_its_time_limit(endless):
    options = ("--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2", "--mem=4000M", "--cpus-per-task=1", "--time=3")
    job_id = endless.sbatch("train", "small", "config.json", options=options)
    # The limit is three minutes and the signal comes two minutes before, or up to half a minute earlier.
    assert second_attempt_steps(endless, 240) == last_step_of_first_attempt(endless) + 1
    assert endless.restarts(job_id) >= 1
    first, second = attempt_starts(endless)[:2]
    assert first["job_id"] == second["job_id"] == job_id
    assert first["world_size"] == second["world_size"] == 4


def test_a_lost_node_costs_at_most_one_checkpoint_interval(endless):
    endless.launch("train")
    job_id = endless.job_id()
    wait("a few steps", 120, lambda: endless.last_step() > 4)
    endless.cluster.do("kill-node", "gpu2")
    wait("the job back in the queue", 60, lambda: endless.state(job_id) == "PENDING")
    endless.cluster.do("start-node", "gpu2")
    first = second_attempt_steps(endless, 180)
    # One interval, and what was done while the checkpoint at its end was still being written.
    assert (first - 1) % 3 == 0
    assert last_step_of_first_attempt(endless) - first < 2 * 3
    assert endless.cluster.ask("squeue", "-h", "-j", job_id, "-o", "%T") == "RUNNING"


def test_training_goes_on_with_fewer_nodes_where_the_run_allows_it(endless):
    endless.launch("train", 2, 2, "--min-nodes", "1")
    job_id = endless.job_id()
    wait("a few steps", 120, lambda: endless.last_step() > 4)
    endless.cluster.do("kill-node", "gpu2")
    try:
        first = second_attempt_steps(endless, 180)
        assert first > 1
        assert [row["world_size"] for row in attempt_starts(endless)] == [4, 2]
        assert endless.restarts(job_id) == 1
    finally:
        endless.cluster.ask("scancel", job_id)
        endless.cluster.do("start-node", "gpu2")


def test_a_job_that_only_waits_its_turn_starts_with_all_its_nodes(site):
    project.make(site.folder, max_steps=5)
    blocker = site.cluster.ask("sbatch", "--parsable", "-p", "gpu", "-w", "gpu2", "--exclusive", "--wrap", "sleep 600")
    wait("somebody else's job", 60, lambda: site.state(blocker) == "RUNNING")
    launcher = site.launch("train", 2, 2, "--min-nodes", "1", BRICKREEL_POLL_S="1")
    job_id = site.job_id()
    wait(
        "its turn", 60, lambda: site.cluster.ask("squeue", "-h", "-j", job_id, "-o", "%r") in ("Resources", "Priority")
    )
    time.sleep(10)
    assert site.state(job_id) == "PENDING"
    site.cluster.ask("scancel", blocker)
    finish(launcher)
    assert [row["world_size"] for row in attempt_starts(site)] == [4]


def test_a_preflight_whose_time_is_up_is_not_begun_anew(site):
    config = project.make(site.folder)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"preflight": {"quick": False, "disk_mib": 4}}))
    launcher = site.launch("preflight", 2, 1, "--runtime", "2")
    output = launcher.communicate(timeout=200)[0]
    assert launcher.returncode == 1
    assert "its time was up before it had ended: raise `runtime` of preflight" in output
    assert site.restarts(site.job_id("preflight")) == 0


def test_a_preflight_script_that_hangs_ends_with_its_time(site):
    project.make(site.folder)
    options = ("--nodes=2", "--ntasks-per-node=1", "--gres=gpu:1", "--mem=4000M", "--cpus-per-task=1", "--time=1")
    job_id = site.sbatch("preflight", "small", "config.json", options=options)
    command = b"python\0-m\0brickreel\0preflight"
    nodes = [wait("a rank", 60, lambda node=node: site.pids(job_id, node, command)) for node in ("gpu1", "gpu2")]
    for pid in (pid for pids in nodes for pid in pids):  # together: one alone would end the other's patience
        if not Path(f"/proc/{pid}/comm").read_text().startswith("srun"):
            os.kill(pid, signal.SIGSTOP)
    wait("its end", 240, lambda: site.state(job_id) not in ("RUNNING", "COMPLETING"))
    assert site.state(job_id) == "TIMEOUT"
    assert site.restarts(job_id) == 0


def test_a_killed_rank_is_a_requeue(endless):
    endless.launch("train")
    job_id = endless.job_id()
    wait("a few steps", 120, lambda: endless.last_step() > 4)
    os.kill(endless.rank_pids(job_id, "gpu2")[0], signal.SIGKILL)
    second_attempt_steps(endless, 180)
    assert endless.restarts(job_id) == 1


def test_a_hang_is_noticed_its_stacks_are_kept_and_the_job_starts_anew(endless):
    launcher = endless.launch("train", BRICKREEL_HANG_S="12")
    job_id = endless.job_id()
    wait("a few steps", 120, lambda: endless.last_step() > 4)
    os.kill(endless.rank_pids(job_id, "gpu2")[0], signal.SIGSTOP)
    second_attempt_steps(endless, 240)
    stacks = {path.name.split("-")[-1]: path.read_text() for path in endless.folder.glob("logs/train/small/stacks-*")}
    assert set(stacks) == {"gpu1.txt", "gpu2.txt"}
    assert re.search(r"_step|_agree|all_reduce", stacks["gpu1.txt"])
    # The stopped rank can not say where it is; the others wait for it. (It may answer later: a requeue wakes it up.)
    assert len(list((endless.folder / "logs/train/small").glob("flight-*.json"))) >= 3
    launcher.send_signal(signal.SIGTERM)
    output = launcher.communicate(timeout=60)[0]
    assert re.search(rf"Slurm job {job_id}: .*rank [23] did not answer: stopped, or gone", output), output


def test_controller_and_accounting_may_go_away_while_a_job_runs(site):
    project.make(site.folder, max_steps=40, checkpoint_every=10)
    launcher = site.launch("train")
    job_id = site.job_id()
    wait("a step", 120, lambda: site.last_step() > 0)
    site.cluster.do("stop-accounting")
    site.cluster.do("restart-controller")
    output = launcher.communicate(timeout=240)[0]
    site.cluster.do("start-accounting")
    assert launcher.returncode == 0, output
    assert site.last_step() == 40
    assert site.restarts(job_id) == 0


def test_a_job_is_put_back_no_more_often_than_the_site_allows(endless):
    launcher = endless.launch("train", BRICKREEL_MAX_REQUEUES="1")
    job_id = endless.job_id()
    wait("a few steps", 120, lambda: endless.last_step() > 4)
    os.kill(endless.rank_pids(job_id, "gpu2")[0], signal.SIGKILL)
    second_attempt_steps(endless, 180)
    os.kill(endless.rank_pids(job_id, "gpu2")[0], signal.SIGKILL)
    output = launcher.communicate(timeout=120)[0]
    assert launcher.returncode == 1
    assert f"Slurm job {job_id} failed" in output
    assert "Traceback" not in output
    assert endless.restarts(job_id) == 1


def test_an_error_that_would_only_come_again_is_no_requeue(site):
    project.make(site.folder, max_steps=100_000)
    for path in (site.folder / "results/encode").glob("*.safetensors"):
        path.unlink()
    launcher = site.launch("train")
    output = launcher.communicate(timeout=240)[0]
    assert launcher.returncode == 1
    assert "safetensors" in output
    assert "Traceback" not in output
    assert site.restarts(site.job_id()) == 0


def test_a_cancelled_job_stays_cancelled(endless):
    launcher = endless.launch("train")
    job_id = endless.job_id()
    wait("a few steps", 120, lambda: endless.last_step() > 1)
    endless.cluster.ask("scancel", job_id)
    output = launcher.communicate(timeout=90)[0]
    assert launcher.returncode == 1
    assert f"Slurm job {job_id} was cancelled" in output
    time.sleep(3)
    assert endless.cluster.ask("squeue", "-h") == ""
