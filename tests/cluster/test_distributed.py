import os
import resource
import subprocess
import sys

import pytest

from brickreel.cluster import distributed
from brickreel.cluster.ranks import Ranks


@pytest.mark.parametrize(
    ("node_list", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu[1-2]", "gpu1"),
        ("gpu[07-12,15],cpu1", "gpu07"),
        ("gpu[3,5]", "gpu3"),
        ("a-b[1-2].site.org,c3", "a-b1.site.org"),
        ("r[01-03]n[07-09]", "r01n07"),
        ("cpu3,gpu[1-2]", "cpu3"),
    ],
)
def test_first_host_of_a_slurm_node_list(node_list, first):
    assert distributed.first_host(node_list) == first


def test_every_attempt_and_step_meets_at_another_port():
    ports = {
        distributed.port({"SLURM_JOB_ID": "77", "SLURM_STEP_ID": step, "SLURM_RESTART_COUNT": restart})
        for step in "01"
        for restart in "012"
    }
    assert len(ports) == 6
    assert all(distributed.FIRST_PORT <= port < distributed.LAST_PORT for port in ports)


def test_a_single_process_starts_nothing(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.start().world_size == 1
    distributed.stop()


def test_ranks_without_a_meeting_point_are_one_sentence(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match="MASTER_ADDR is not set"):
        distributed.export(Ranks(1, 2, 1, 2, "here", "torchrun"))


SUM = """
import torch, torch.distributed as dist
from brickreel.cluster import distributed
ranks = distributed.start(timeout_s=60)
value = torch.tensor([ranks.rank + 1.0])
dist.all_reduce(value)
print(ranks.source, ranks.world_size, int(value), flush=True)
distributed.stop()
"""


PATIENCE = """
import time
from brickreel.cluster import distributed
ranks = distributed.start(timeout_s=60)
done = []
distributed.first_alone(lambda: done.append(1), ranks, patience_s=60)
try:
    distributed.first_alone(lambda: time.sleep(3), ranks, patience_s=1)
    print(len(done), "waited", flush=True)
except RuntimeError:
    print(len(done), "lost patience", flush=True)
"""


MET = """
import time
import torch.distributed as dist
from brickreel.cluster import distributed
ranks = distributed.start(timeout_s=5, patience_s=60)
if ranks.rank:
    time.sleep(8)
everyone = [None, None]
dist.all_gather_object(everyone, ranks.rank)
print(everyone, flush=True)
distributed.stop()
"""


LATER = """
import time
import torch.distributed as dist
from brickreel.cluster import distributed
ranks = distributed.start(timeout_s=60, patience_s=2)
group = dist.new_group(backend="gloo")
dist.barrier()
if ranks.rank:
    time.sleep(6)
else:
    try:
        dist.barrier(group=group)
    except RuntimeError:
        print("lost patience", flush=True)
"""


ENDED = """
import os
from pathlib import Path
from brickreel.cluster import distributed, flight
ranks = distributed.start(timeout_s=60, evidence=Path("logs/train/small"))
print(os.environ[flight.PREFIX], flush=True)
os.dup2(1, 2)
def where_it_was():
    os.abort()
distributed.barrier()
where_it_was()
"""


def outputs_of_two_ranks(script: str) -> list[str]:
    """What each of two processes of a Slurm step prints."""
    environment = os.environ | {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_JOB_ID": str(os.getpid()),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=environment | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    return [process.communicate(timeout=120)[0].strip() for process in processes]


def test_two_processes_with_slurm_variables_find_each_other():
    assert outputs_of_two_ranks(SUM) == ["slurm 2 3"] * 2


def test_the_first_rank_acts_alone_and_the_others_wait_as_long_as_they_are_told():
    first, second = outputs_of_two_ranks(PATIENCE)
    assert first.startswith("1 ")
    assert second == "0 lost patience"


@pytest.mark.slow
def test_ranks_that_have_met_wait_for_each_other_longer_than_for_the_meeting():
    assert outputs_of_two_ranks(MET) == ["[0, 1]"] * 2


@pytest.mark.slow
def test_groups_that_are_made_later_have_the_same_patience():
    assert outputs_of_two_ranks(LATER)[0] == "lost patience"


def test_what_ends_a_rank_by_itself_leaves_evidence_in_the_folder_of_the_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for output in outputs_of_two_ranks(ENDED):
        prefix, _, stacks = output.partition("\n")
        assert prefix == f"{tmp_path}/logs/train/small/nccl-{os.getpid()}-0-rank-"
        assert "in where_it_was" in stacks
    assert (tmp_path / "logs/train/small").is_dir()


def test_ranks_may_open_as_many_files_as_the_node_allows(monkeypatch):
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 20_000))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))
    distributed._allow_open_files()
    assert asked == [(20_000, 20_000)]

    def refuse(which, limits):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    distributed._allow_open_files()  # what cannot be raised stays as it is
