import os
import stat

import pytest

from brickreel.cluster import slurm
from brickreel.cluster.slurm import Ended, Queued


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Client programs that say what a test wants, in front on PATH."""

    def install(name, output, status=0, error=""):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\necho '{error}' >&2\nexit {status}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return install


def test_a_job_in_the_queue_is_read_with_its_reason_and_nodes(programs):
    programs("squeue", "RUNNING|None|gpu[1-2]")
    assert slurm.queued("7") == Queued("RUNNING", "None", "gpu[1-2]")


def test_a_job_that_slurm_has_forgotten_is_not_in_the_queue(programs):
    programs("squeue", "", 1, "slurm_load_jobs error: Invalid job id specified")
    assert slurm.queued("7") is None


def test_a_controller_that_does_not_answer_says_nothing_about_the_job(programs):
    programs("squeue", "", 1, "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    with pytest.raises(ConnectionError, match="Unable to contact"):
        slurm.queued("7")


def test_a_controller_that_does_not_answer_is_not_an_empty_queue(programs):
    programs("squeue", "12|/a folder")
    assert slurm.user_jobs("train-x") == [("12", "/a folder")]
    programs("squeue", "", 1, "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    with pytest.raises(ConnectionError, match="Unable to contact"):
        slurm.user_jobs("train-x")


def test_the_controller_knows_an_end_without_accounting(programs):
    programs("scontrol", "JobId=7 JobState=COMPLETED Reason=None ExitCode=0:0 EndTime=2026-01-01T10:00:00")
    programs("sacct", "", 1, "sacct: error: slurm_persist_conn_open_without_init: failed to open")
    assert slurm.ended("7") == Ended("COMPLETED", "0:0")


def test_accounting_knows_an_end_that_the_controller_has_forgotten(programs):
    programs("scontrol", "", 1, "slurm_load_jobs error: Invalid job id specified")
    programs("sacct", "CANCELLED by 0|0:0|2026-01-01T10:00:00")
    assert slurm.ended("7") == Ended("CANCELLED", "0:0")


def test_a_lost_node_is_not_the_end_while_slurm_may_requeue(programs):
    programs("scontrol", "JobId=7 JobState=PENDING Reason=BeginTime ExitCode=0:0 EndTime=Unknown")
    programs("sacct", "NODE_FAIL|0:0|Unknown")
    assert slurm.ended("7") is None


@pytest.mark.parametrize(
    ("queued", "word"),
    [
        (Queued("PENDING", "PartitionTimeLimit", ""), "runtime"),
        (Queued("PENDING", "InvalidQOS", ""), "QOS"),
    ],
)
def test_a_job_that_can_never_start_comes_with_advice(queued, word):
    assert word in slurm.never_starts(queued)


@pytest.mark.parametrize("reason", ["Priority", "Resources", "BeginTime", "None", "QOSGrpCpuLimit"])
def test_a_job_that_only_waits_is_left_waiting(reason):
    job = Queued("PENDING", reason, "")
    assert slurm.never_starts(job) is slurm.starts_when_nodes_return(job) is slurm.explain_wait("7", job) is None


@pytest.mark.parametrize(
    ("reason", "word"), [("PartitionNodeLimit", "nodes"), ("PartitionConfig", "gres"), ("BadConstraints", "gres")]
)
def test_what_slurm_also_says_while_nodes_are_down_may_pass(reason, word):
    job = Queued("PENDING", reason, "")
    assert slurm.never_starts(job) is None
    assert word in slurm.starts_when_nodes_return(job)
    assert "up now" in slurm.explain_wait("7", job)
    assert slurm.starts_when_nodes_return(job._replace(state="RUNNING")) is None


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("JobHeldAdmin", "an administrator"),
        ("JobHeldUser", "scontrol release 7"),
        ("launch failed requeued held", "scontrol release 7"),
        ("job requeued in held state", "scontrol release 7"),
    ],
)
def test_a_held_job_waits_and_it_is_told_how_to_release_it(reason, word):
    job = Queued("PENDING", reason, "")
    assert slurm.never_starts(job) is slurm.starts_when_nodes_return(job) is None
    assert word in slurm.explain_wait("7", job)


def test_the_name_of_a_chosen_cluster_above_a_list_is_no_job(programs):
    programs("squeue", "CLUSTER: big\nRUNNING|None|gpu1")
    assert slurm.queued("7") == Queued("RUNNING", "None", "gpu1")
    programs("squeue", "CLUSTER: big")
    assert slurm.queued("7") is None
    assert slurm.user_jobs("train-x") == []


def test_nodes_that_take_no_job_are_told_from_busy_ones(programs):
    programs("sinfo", "a idle\nb mix\nc down*\nd drng\ne alloc*\nf maint\ng alloc\nh drain\nh drain")
    assert slurm.out_of_order("[a-h]") == ["c", "d", "e", "f", "h"]
    programs(
        "sinfo",
        "a idle gpu:8 gpu\nb mix gpu:h100:8(S:0-1) gpu*\nc down* gpu:8 gpu*\nr resv gpu:8 gpu\ng alloc (null) gpu",
    )
    assert slurm.nodes_in_order("gpu", gpus=8) == {"a", "b"}
    assert slurm.nodes_in_order("gpu", "h100", 8) == {"b"}
    assert slurm.nodes_in_order("", gpus=8) == {"b"}
    assert slurm.nodes_in_order("gpu") == {"a", "b", "g"}
    programs("sinfo", "", 1, "slurm_load_node: Unable to contact slurm controller")
    assert slurm.out_of_order("[a-h]") == []
    assert slurm.nodes_in_order("gpu") is None


def test_how_often_a_job_was_put_back_and_on_how_many_nodes_it_runs(programs):
    programs("scontrol", "JobId=7 Requeue=1 Restarts=3 BatchFlag=1")
    programs("squeue", "2")
    assert (slurm.restarts("7"), slurm.node_count("7")) == (3, 2)
    programs("scontrol", "", 1, "no answer")
    programs("squeue", "", 1, "no answer")
    assert (slurm.restarts("7"), slurm.node_count("7")) == (None, None)


def test_a_refusal_names_the_partition():
    message = "sbatch: error: invalid partition specified: h100s\nsbatch: error: Batch job submission failed: Invalid"
    assert "'h100s'" in slurm.explain_refusal(message)


def test_an_unknown_refusal_is_passed_on_in_slurms_words():
    assert slurm.explain_refusal("sbatch: error: The moon is full") == "The moon is full"


def test_every_end_is_a_sentence():
    assert "mem_mb" in slurm.explain_end("7", Ended("OUT_OF_MEMORY", "0:125"))
    assert slurm.explain_end("7", Ended("CANCELLED", "0:0")) == "Slurm job 7 was cancelled"


def test_missing_programs_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.available()
    with pytest.raises(ValueError, match="--executor local"):
        slurm.queued("7")
