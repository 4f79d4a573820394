import json
import os
import shutil

import pytest

import forked
from brickreel import config, files
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
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    project.make(first)
    shutil.copytree(first, second)
    return first, second


def two_ranks(folders, script):
    """Exit statuses and outputs of two ranks, each of them in a folder and on a node of its own."""
    own = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    own |= {"MASTER_PORT": str(20000 + os.getpid() % 9000), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        forked.program(
            ["-c", script],
            folder,
            [folder / "stdout", folder / "stderr"],
            **own | {"RANK": str(rank), "SLURMD_NODENAME": f"node{rank}"},
        )
        for rank, folder in enumerate(folders)
    ]
    for rank in ranks:
        rank.join(120)
    return [rank.exitcode for rank in ranks], [(folder / "stdout").read_text() for folder in folders]


def rehearsed(folders, script=REHEARSE):
    """What the first of two ranks says."""
    statuses, said = two_ranks(folders, script)
    assert statuses == [0, 0]
    return json.loads(said[0])


def test_a_sound_pair_of_nodes_rehearses_its_largest_micro_batch(folders):
    found = {check["name"]: check for check in rehearsed(folders)}
    assert (found["largest micro-batch"]["result"], found["equal shares"]["result"]) == ("pass", "pass")
    # A CPU's memory is not measured, and there is no unit without a number.
    assert (found["largest micro-batch"]["value"], found["largest micro-batch"]["unit"]) == (None, "")


@pytest.mark.slow
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


FULL = """
import os
from brickreel.cluster import together
from brickreel.training import rehearsal
together.LOOKS = 2
step = rehearsal._step
def on_one_rank(*given):
    if os.environ["RANK"] == "1":
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    return step(*given)
rehearsal._step = on_one_rank
"""
STAGE = """
from brickreel import config, running
from brickreel.stages import preflight
running.set_up_logging()
running.guarded("preflight", False, lambda: preflight.run(config.load("config.json"), "small"))
"""


@pytest.mark.slow
def test_ranks_that_wait_for_one_that_is_out_of_memory_hear_of_it(folders, monkeypatch):
    """The first rank waits in the exchange of gradients, where the second one never comes."""
    monkeypatch.setenv("BRICKREEL_VERDICT", "verdict")
    assert two_ranks(folders, FULL + STAGE)[0] == [1, 1]
    health = files.read_json("results/preflight/small/health.json")
    checks = {check["name"]: check for check in health["checks"]}
    assert health["verdict"] == "fail"
    assert "node1" in health["exclude"]
    assert checks["equal shares"]["result"] == "not measured"
    sentence = "rank 1 on node1: CUDA out of memory. Tried to allocate 20.00 GiB.: make the micro-batch smaller"
    assert checks["largest micro-batch"]["reason"].startswith(sentence)
    assert all(sentence in (folder / "verdict").read_text() for folder in folders)


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
    meeting, later, _ = waits
    assert meeting == 60
    assert later >= max(sweep.DEADLINE_S, preflight.CONFIRM_S) + 60
