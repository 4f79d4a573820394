import sys

import pytest

from brickreel.cluster import fabric, sweep, tuning
from brickreel.cluster.ranks import Ranks
from cluster import sysfs

CALLS = [tuning.Call("all_gather", 8.0, 2), tuning.Call("reduce_scatter", 16.0, 1)]


def test_a_step_counts_every_collective_as_often_as_it_is_called():
    assert tuning.score(CALLS, [0.1, 0.5]) == pytest.approx(0.7)


def test_sharded_training_gathers_twice_in_half_the_bytes_and_scatters_once():
    calls = {(call.name, call.mib): call.times for call in tuning.workload([16.0, 16.0, 4.0], replicated=False)}
    assert calls == {
        ("all_gather", 8.0): 4,
        ("reduce_scatter", 16.0): 2,
        ("all_gather", 2.0): 2,
        ("reduce_scatter", 4.0): 1,
    }


def test_replicated_training_reduces_buckets():
    assert tuning.workload([50.0, 25.0], replicated=True) == [tuning.Call("all_reduce", 25.0, 3.0)]


def test_a_clear_winner_is_adopted():
    found = tuning.choose({"default": [1.0, 1.02, 0.99], "better": [0.8, 0.82, 0.81]})
    assert found.chosen == "better"
    assert found.gain == pytest.approx(0.19)


@pytest.mark.parametrize(
    "scores",
    [
        {"default": [1.0, 1.18, 1.05], "lucky once": [0.81, 1.07, 1.06]},
        {"default": [1.0, 1.0, 1.0], "hardly": [0.97, 0.97, 0.97]},
        {"default": [1.0, 1.2, 1.4], "within the noise": [0.95, 0.9, 0.92]},
        {"default": [1.0, 1.0, 1.0]},
    ],
)
def test_noise_is_not_adopted(scores):
    assert tuning.choose(scores).chosen == "default"


def test_real_steps_overrule_collectives():
    found = tuning.choose({"default": [1.0] * 3, "greedy": [0.5] * 3})
    assert tuning.confirm(found, [2.0, 2.0], [2.1, 2.2]).chosen == "default"
    assert tuning.confirm(found, [2.0, 2.0], [1.9, 1.8]).chosen == "greedy"


def test_what_is_adopted_carries_its_reason(tmp_path):
    tried = tuning.candidates(fabric.read(sysfs.hgx(tmp_path)), nodes=2, cuda=True)
    assert tried[0].name == "default"
    assert len(tried) <= 6
    verdict = tuning.Verdict("rings across rails", 0.1, 0.0, "every repeat")
    (line,) = tuning.variables(verdict, tried)
    assert (line.name, line.value) == ("NCCL_CROSS_NIC", "1")
    assert line.reason.endswith("every repeat")


def test_results_are_kept_by_what_they_depend_on():
    assert tuning.key({"nodes": 2, "nccl": "2.30"}) == tuning.key({"nccl": "2.30", "nodes": 2})
    assert tuning.key({"nodes": 2}) != tuning.key({"nodes": 4})


def test_a_child_inherits_nothing_about_networks(monkeypatch):
    monkeypatch.setenv("NCCL_IB_DISABLE", "1")
    found = sweep.environment({"NCCL_CROSS_NIC": "1"}, Ranks(1, 4, 1, 2), 12345)
    assert "NCCL_IB_DISABLE" not in found
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_PORT"]) == ("1", "4", "12345")
    assert found["NCCL_CROSS_NIC"] == "1"


def test_a_child_that_hangs_or_dies_is_a_reason():
    hang = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert sweep.child(hang, {}, 0.5) == (None, "no answer in 0 s")
    answer, problem = sweep.child([sys.executable, "-c", "raise SystemExit('no such device')"], {}, 30)
    assert answer is None
    assert problem == "status 1: no such device"
    assert sweep.child([sys.executable, "-c", "print('x'); print('[1]')"], {}, 30) == ([1], "")
