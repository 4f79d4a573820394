import json
import os
import shutil
import subprocess
import sys

import pytest

from brickreel import config
from brickreel.cluster import distributed, sweep
from brickreel.cluster.ranks import Ranks
from brickreel.stages import preflight
from brickreel.training import rehearsal
from training import project

REHEARSE = """
import json
from brickreel import config
from brickreel.cluster import distributed, sweep
from brickreel.stages import preflight
ranks = distributed.start(timeout_s=60)
checks = preflight.rehearsal(config.load("config.json"), "small", ranks)
assert sweep.gather(ranks.rank, ranks) == [0, 1]  # no rank is a collective ahead
print(json.dumps([check.to_json() for check in checks]))
distributed.stop()
"""


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The same project as two nodes see it."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    monkeypatch.chdir(first)
    project.make(first)
    shutil.copytree(first, second)
    return first, second


def rehearsed(folders, script=REHEARSE):
    """What the first of two ranks says, each of them in a folder and on a node of its own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    own |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    own |= {"MASTER_PORT": str(20000 + os.getpid() % 9000), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=folder,
            env=own | {"RANK": str(rank), "SLURMD_NODENAME": f"node{rank}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, folder in enumerate(folders)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    return json.loads(said[0])


def test_a_sound_pair_of_nodes_rehearses_its_largest_micro_batch(folders):
    found = {check["name"]: check["result"] for check in rehearsed(folders)}
    assert (found["largest micro-batch"], found["equal shares"]) == ("pass", "pass")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda folder: shutil.rmtree(folder / "base"), "base.transformer"),
        (lambda folder: (folder / "base/transformer/config.json").write_text("{"), "is not valid JSON"),
        (lambda folder: shutil.rmtree(folder / "results/plan"), "there is no plan yet"),
    ],
    ids=["no base", "damaged base", "no plan"],
)
def test_a_node_that_cannot_begin_is_named_and_nobody_waits_for_it(folders, harm, sentence):
    harm(folders[1])
    (check,) = rehearsed(folders)
    assert (check["node"], check["result"]) == ("node1", "fail")
    assert "rank 1 on node1, unlike others: " in check["reason"]
    assert sentence in check["reason"]


def test_what_no_node_has_is_not_measured(folders):
    for folder in folders:
        shutil.rmtree(folder / "base")
    (check,) = rehearsed(folders)
    assert (check["node"], check["result"]) == ("all", "not measured")


LATE = """
from brickreel.stages import preflight
def rehearse(config, run, ranks):
    if ranks.rank:
        raise OSError("the disk is gone")
    return preflight.Trial(share=1)
preflight._rehearse = rehearse
"""


def test_an_error_of_one_rank_on_the_way_is_its_nodes_fault(folders):
    checks = rehearsed(folders, LATE + REHEARSE)
    (failed,) = [check for check in checks if check["result"] == "fail"]
    assert failed["node"] == "node1"
    assert failed["reason"] == "rank 1 on node1: the disk is gone"


def test_a_step_that_fits_into_no_memory_is_told_what_to_do(folders, monkeypatch):
    def rehearse(*_):
        raise RuntimeError("CUDA out of memory\nmore words")

    monkeypatch.setattr(rehearsal, "rehearse", rehearse)
    check = preflight.rehearsal(config.load("config.json"), "small", Ranks())[0]
    assert check.result == "fail"
    assert "CUDA out of memory: make the micro-batch smaller" in check.reason


def test_nodes_meet_quickly_and_then_wait_as_long_as_a_child_may_take(folders, monkeypatch):
    waits = []

    def start(*given):
        waits.extend(given)
        raise ConnectionError("enough")

    monkeypatch.setattr(distributed, "start", start)
    with pytest.raises(ConnectionError):
        preflight.run(config.load("config.json"), "small")
    meeting, later = waits
    assert meeting == 60
    assert later >= max(sweep.DEADLINE_S, preflight.CONFIRM_S) + 60
