import os
import socket
import subprocess
import sys
import time

from brickreel.cluster import flight

RANK = """
import sys, time, torch, torch.distributed as dist
from brickreel.cluster import distributed
ranks = distributed.start(timeout_s=60)
dist.all_reduce(torch.ones(1))
print("ready", flush=True)
if ranks.rank == 1:
    time.sleep(600)
dist.all_reduce(torch.ones(1))
"""


def entry(record_id, name="gloo:all_reduce"):
    return {"record_id": record_id, "profiling_name": name, "is_p2p": False}


def test_a_rank_inside_a_collective_tells_what_it_waits_in(tmp_path):
    """Two real ranks, one of which never comes to the second all_reduce."""
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    variables["MASTER_PORT"] = str(21000 + os.getpid() % 9000)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env=own | variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
        time.sleep(1)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
            for damaged in (b"\xff", b"a\0b"):
                mouth.sendto(damaged, flight._address(processes[0].pid))
        if os.getuid() == 0:
            child = os.fork()  # the interpreter's folder may be closed to others
            if not child:
                os.setuid(65534)
                flight.ask(processes[0].pid, str(tmp_path / "stranger"))
                os._exit(0)
            os.waitpid(child, 0)
        assert all(flight.ask(process.pid, str(tmp_path / "flight-x")) for process in processes)
        deadline = time.monotonic() + 30
        while len(records := flight.read(tmp_path, "flight-x")) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert not list(tmp_path.glob("stranger*"))
    assert flight.suspects(records, 2) == "rank 1 did not come to the gloo:all_reduce in which rank 0 waits"


def test_nobody_listens_at_another_process(tmp_path):
    assert not flight.ask(os.getpid(), str(tmp_path / "x"))


def test_silent_ranks_are_named():
    records = {0: {"entries": [entry(4)]}, 2: {"entries": [entry(4)]}}
    assert flight.suspects(records, 4) == "ranks 1, 3 did not answer: stopped, or gone"


def test_ranks_at_the_same_collective_are_said_to_be():
    assert flight.suspects({0: {"entries": [entry(4)]}, 1: {"entries": [entry(4)]}}, 2) == (
        "all ranks stand at the same collective"
    )


def test_without_records_nothing_is_claimed():
    assert flight.suspects({}, 4) == ""


def test_a_rank_that_has_started_no_collective_has_no_entries():
    told = flight.suspects({0: {"entries": [entry(4)]}, 1: {"version": "2.4"}}, 2)
    assert told == "rank 1 did not come to the gloo:all_reduce in which rank 0 waits"
