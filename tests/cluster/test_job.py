import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brickreel import files
from brickreel.cluster import job as jobs
from brickreel.cluster import slurm
from brickreel.cluster.follow import Follower
from brickreel.cluster.site_env import Site
from brickreel.cluster.slurm import Queued
from brickreel.cluster.submission import Resources

HUNG_UP = """
import os, signal, sys
from brickreel.cluster.job import Watch
watch = Watch()
os.kill(os.getpid(), signal.SIGHUP)
print(watch.detached)
"""


def _heard():
    """The tests themselves may run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize(("front", "detached"), [(["nohup"], "False"), ([], "True")])
def test_under_nohup_a_closed_terminal_says_nothing(front, detached):
    done = subprocess.run(
        [*front, sys.executable, "-c", HUNG_UP], capture_output=True, text=True, check=True, preexec_fn=_heard
    )
    assert done.stdout.strip() == detached


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder with client programs that keep what they were asked, and answer with the file of their name."""
    monkeypatch.chdir(tmp_path)
    for name in ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "sacct"):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> asked\n[ ! -f {name}.says ] || cat {name}.says\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("brickreel.cluster.job.logger.propagate", True)
    monkeypatch.setattr(jobs, "TICK_S", 0.01)
    (tmp_path / "config.yaml").write_text("runs: {r: {}}\n")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield tmp_path
    for number, handler in before.items():
        signal.signal(number, handler)


def says(name, text):
    Path(f"{name}.says").write_text(text + "\n")


def asked(name):
    lines = Path("asked").read_text().splitlines() if Path("asked").is_file() else []
    return [line for line in lines if line.startswith(name)]


def job(**resources):
    return jobs.Job("train", {"run": "r"}, "r", ("config.yaml",), Resources(**resources), None, "")


def follow(monkeypatch, **resources):
    """Follow job 7 until it ends, by an impatient launcher that looks all the time."""
    monkeypatch.setattr(jobs, "SETTLED_S", 0.0)
    watch = jobs.Watch()
    return jobs.follow(job(**resources), "7", Site(poll_s=0.0), watch, Follower([Path("none")], None))


@pytest.mark.parametrize("reason", ["PartitionTimeLimit", "InvalidQOS"])
def test_a_job_that_can_never_start_is_cancelled(site, monkeypatch, reason):
    says("squeue", f"PENDING|{reason}|")
    with pytest.raises(ValueError, match="can never start"):
        follow(monkeypatch)
    assert asked("scancel") == ["scancel 7"]


def ends(monkeypatch, after):
    """Let the job be gone, and ended well, after so many looks."""
    real, looks = slurm.queued, []

    def queued(job_id):
        looks.append(job_id)
        if len(looks) > after:
            says("squeue", "")
            says("scontrol", "JobId=7 JobState=COMPLETED ExitCode=0:0 EndTime=2026-01-01T10:00:00")
        return real(job_id)

    monkeypatch.setattr(slurm, "queued", queued)


@pytest.mark.parametrize("reason", ["JobHeldAdmin", "JobHeldUser", "job requeued in held state"])
def test_a_held_job_is_waited_for_and_told_of_once(site, monkeypatch, caplog, reason):
    caplog.set_level("INFO")
    says("squeue", f"PENDING|{reason}|")
    ends(monkeypatch, after=8)
    monkeypatch.setattr(jobs, "NODES_RETURN_S", 0.0)
    assert follow(monkeypatch).state == "COMPLETED"
    assert not asked("scancel")
    (told,) = [record.getMessage() for record in caplog.records if reason in record.getMessage()]
    assert "release" in told


@pytest.mark.parametrize("reason", ["PartitionNodeLimit", "PartitionConfig", "BadConstraints"])
def test_what_may_be_for_nodes_that_are_down_ends_only_a_job_that_never_ran_and_only_later(site, monkeypatch, reason):
    says("squeue", f"PENDING|{reason}|")
    says("scontrol", "JobId=7 JobState=PENDING Restarts=0")
    started = time.monotonic()
    monkeypatch.setattr(jobs, "NODES_RETURN_S", 0.5)
    with pytest.raises(ValueError, match="can never start"):
        follow(monkeypatch)
    assert time.monotonic() - started >= 0.5
    Path("asked").unlink()
    says("scontrol", "JobId=7 JobState=PENDING Restarts=1")
    monkeypatch.setattr(jobs, "NODES_RETURN_S", 0.0)
    ends(monkeypatch, after=5)
    assert follow(monkeypatch).state == "COMPLETED"
    assert not asked("scancel")


def test_a_job_whose_end_nobody_knows_is_cancelled_so_that_the_next_one_is_alone(site, monkeypatch):
    monkeypatch.setattr(jobs, "UNKNOWN_END_S", 0.0)
    assert "does not know" in follow(monkeypatch).state
    assert asked("scancel") == ["scancel 7"]


def places(**resources):
    size = {"nodes": 4, "tasks_per_node": 8, "min_nodes": 2, "cpus_per_task": 4}
    return jobs.Places(job(**size | resources), "7")


WAITS = Queued("PENDING", "Resources", "")


def test_a_job_that_waits_its_turn_waits_for_all_its_nodes(site):
    says("sinfo", "gpu1 idle\ngpu2 alloc")
    where = places()
    where.look(WAITS)  # it never ran
    where.look(Queued("RUNNING", "None", "gpu[1-4]"))
    where.look(WAITS)  # preempted, say: all its nodes are in order
    assert not asked("scontrol")


@pytest.mark.parametrize("reason", ["Resources", "ReqNodeNotAvail, UnavailableNodes:gpu2", "PartitionNodeLimit"])
def test_a_job_that_lost_a_node_may_go_on_with_fewer(site, caplog, reason):
    caplog.set_level("INFO")
    says("sinfo", "gpu1 idle\ngpu2 down*")
    where = places()
    where.look(Queued("RUNNING", "None", "gpu[1-4]"))
    for _ in range(3):
        where.look(WAITS._replace(reason=reason))
    changes = [line.removeprefix("scontrol update jobid=7 ") for line in asked("scontrol")]
    assert changes == ["NumTasks=16", "NumCPUs=64", "NumNodes=2-4"]
    assert "lost gpu2 and may go on with 2 nodes" in caplog.text


def test_the_next_launcher_knows_where_the_job_ran(site):
    says("sinfo", "gpu2 down*")
    places().look(Queued("RUNNING", "None", "gpu[1-4]"))
    assert files.read_json("results/train/r/job.json")["places"] == {"7": "gpu[1-4]"}
    places().look(WAITS)
    assert len(asked("scontrol")) == 3


def test_without_min_nodes_a_job_waits_for_the_node_that_it_lost(site):
    says("sinfo", "gpu2 down*")
    where = places(min_nodes=0)
    where.look(Queued("RUNNING", "None", "gpu[1-4]"))
    where.look(WAITS)
    assert not asked("scontrol")


def test_a_job_is_submitted_away_from_faulty_nodes(site, monkeypatch):
    health = {"time_s": time.time(), "nodes": ["gpu1", "gpu2"], "exclude": ["gpu2"], "checks": []}
    files.write_json("logs/preflight/r/health.json", health)
    (site / "slurm").symlink_to(Path(__file__).parents[2] / "slurm")
    (site / "sbatch").write_text('#!/bin/sh\ncp "$1" script\necho Submitted batch job 7\n')
    ends(monkeypatch, after=0)
    jobs.run_slurm(job(), Site(poll_s=0.0))
    assert "#SBATCH --exclude=gpu2\n" in Path("script").read_text()
