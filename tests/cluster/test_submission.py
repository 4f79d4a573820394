import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest
import submitit

from brickreel import running
from brickreel.cluster import exits
from brickreel.cluster.submission import Resources, StageTask, parameters, parse_options, submit

ROOT = Path(__file__).parents[2]


def test_options_are_read_in_every_form_of_sbatch():
    assert parse_options("--qos=long --exclusive --constraint 'h100&ib'") == {
        "qos": "long",
        "exclusive": True,
        "constraint": "h100&ib",
    }
    assert parse_options("") == {}


@pytest.mark.parametrize("text", ["-p gpu", "long", "--qos=long more"])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match="long form"):
        parse_options(text)


@pytest.mark.parametrize("text", ["-M big", "-Mbig", "--clusters=big", "--cluster big"])
def test_a_job_on_another_cluster_would_not_be_found_again(text):
    with pytest.raises(ValueError, match="set SLURM_CLUSTERS, which squeue reads too"):
        parse_options(text)
    assert parse_options("--cluster-constraint=big") == {"cluster-constraint": "big"}


def test_what_is_not_asked_for_is_left_to_slurm():
    asked = parameters(Resources(), "train-demo", "demo")
    assert not {"partition", "account", "gres", "mem", "exclude"} & set(asked)
    assert asked["additional_parameters"]["requeue"] is True


def test_all_memory_of_a_node_can_be_asked_for():
    assert parameters(Resources(mem_mb=0), "x", None)["mem"] == "0M"


def test_a_job_that_may_go_on_with_fewer_nodes_starts_with_all():
    asked = parameters(Resources(nodes=4, min_nodes=2), "x", None)
    assert asked["nodes"] == 4
    assert "nodes" not in asked["additional_parameters"]


def test_srun_starts_as_many_ranks_as_an_attempts_nodes_hold(project):
    submitted(project, Resources(nodes=4, tasks_per_node=8, min_nodes=2))
    (project / "programs/srun").write_text("#!/bin/sh\necho $SLURM_NTASKS $SLURM_NPROCS\n")
    job = os.environ | {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS": "32"}
    done = subprocess.run(["bash", "script"], env=job, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["24", "24"]


def test_unfit_nodes_are_excluded_beside_those_that_the_user_names():
    assert parameters(Resources(exclude=("gpu2", "gpu7")), "x", None)["exclude"] == "gpu2,gpu7"
    asked = parameters(Resources(exclude=("gpu2",), slurm_extra="--exclude=gpu[4-5]"), "x", None)
    assert asked["exclude"] == "gpu[4-5],gpu2"
    assert "exclude" not in asked["additional_parameters"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project's folder with an sbatch that keeps the script and the environment that it was given."""
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    programs = tmp_path / "programs"
    programs.mkdir()
    sbatch = programs / "sbatch"
    sbatch.write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/script\nenv > {tmp_path}/env\necho Submitted batch job 7\n')
    (programs / "srun").write_text("#!/bin/sh\n")
    for path in programs.iterdir():
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "BRICKREEL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submitted(project, resources, stage="train", **environment):
    """What sbatch was given of the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        assert submit(StageTask(stage, ("config.yaml",), {"run": "demo"}), resources, "x", project / "logs") == "7"
        assert environment.items() <= os.environ.items()
    return dict(line.split("=", 1) for line in (project / "env").read_text().splitlines() if "=" in line)


USERS = {"SBATCH_ACCOUNT": "mine", "SBATCH_PARTITION": "big", "SBATCH_QOS": "long"}
CLUSTER = {"SLURM_CONF": "/etc/site/slurm.conf", "SLURM_CLUSTERS": "big"}


def test_the_users_account_and_cluster_reach_sbatch_as_they_reach_squeue(project):
    defaults = {"SBATCH_TIMELIMIT": "5", "SLURM_TIMELIMIT": "5", "SLURM_EXPORT_ENV": "NONE"}
    given = submitted(project, Resources(), **USERS, **CLUSTER, **defaults)
    assert (USERS | CLUSTER).items() <= given.items()
    assert not defaults.keys() & given.keys()  # they would count for more than the job's own, or for its srun


def test_what_the_profile_names_counts_for_more_than_the_users_environment(project):
    resources = Resources(slurm_partition="gpu", slurm_account="proj", slurm_extra="--qos=short")
    given = submitted(project, resources, **USERS, **CLUSTER)
    assert not USERS.keys() & given.keys()
    assert CLUSTER.items() <= given.items()


def test_nothing_of_a_surrounding_job_leaks_but_the_cluster(project):
    job = {"SLURM_JOB_ID": "3", "SLURM_NTASKS": "1", "SLURM_DISTRIBUTION": "cyclic", "RANK": "0"}
    given = submitted(project, Resources(), **job, **USERS, **CLUSTER, SBATCH_CLUSTERS="other")
    assert not (job | USERS).keys() & given.keys()
    assert "SBATCH_CLUSTERS" not in given
    assert CLUSTER.items() <= given.items()


def test_a_cluster_that_only_sbatch_hears_of_is_refused(project, monkeypatch):
    monkeypatch.setenv("SBATCH_CLUSTERS", "big")
    with pytest.raises(ValueError, match="set SLURM_CLUSTERS"):
        submit(StageTask("train", (), {"run": "demo"}), Resources(), "x", project / "logs")


@pytest.mark.parametrize(("requeues", "back"), [(0, False), (1, True)])
def test_the_batch_script_puts_a_failed_job_back_as_often_as_was_asked_for(project, requeues, back):
    submitted(project, Resources(requeues=requeues), "sample")
    (project / "programs/srun").write_text("#!/bin/sh\nexit 3\n")
    scontrol = project / "programs/scontrol"
    scontrol.write_text("#!/bin/sh\necho asked for $*\nexit 1\n")
    scontrol.chmod(0o755)
    job = os.environ | {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}
    done = subprocess.run(["bash", "script"], env=job, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert ("asked for requeue 7" in done.stdout) == back


@pytest.mark.parametrize(("stage", "times"), [("preflight", 0), ("train", 4)])
def test_a_stage_without_checkpoints_is_not_begun_anew_when_its_time_is_up(project, stage, times):
    submitted(project, Resources(requeues=4), stage)
    (pickled,) = (project / "logs").glob("*submitted.pkl")
    assert submitit.core.utils.DelayedSubmission.load(pickled)._timeout_countdown == times


def test_a_time_out_without_a_requeue_is_a_verdict_that_the_batch_script_reads(project, monkeypatch):
    def submitits(*_):
        raise submitit.core.utils.UncompletedJobError("Job not requeued because: timed-out too many times.")

    def meets_the_others(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGUSR2)
        except Exception as error:
            raise ConnectionError(f"did not find the others: {error}") from error

    monkeypatch.setattr(running, "run_stage", meets_the_others)
    monkeypatch.setattr(running, "set_up_logging", lambda: None)
    monkeypatch.setenv("BRICKREEL_VERDICT", str(project / "verdict"))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    signal.signal(signal.SIGUSR2, submitits)
    try:
        with pytest.raises(SystemExit):
            StageTask("preflight", (), {"run": "demo"})()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "raise `runtime` of preflight in slurm/config.yaml" in exits.verdict_path().read_text()


def test_names_of_runs_are_quoted_for_the_shell():
    lines = parameters(Resources(), "x", "a'b $(c)")["setup"]
    assert lines[-1] == "use_network_of 'a'\"'\"'b $(c)'"


def test_a_requeued_task_is_the_same_task():
    task = StageTask("train", ("config.yaml",), {"run": "demo"})
    again = task.checkpoint()
    assert again.function is task
