"""Slow ranks by simulation: found when they are slow, and nobody is blamed on a clean run."""

import numpy as np
import pytest

from brickreel.telemetry import stragglers
from brickreel.telemetry.goodput import Attempt
from brickreel.telemetry.steps import DURATIONS, Steps

RANKS, STEPS = 32, 2000


def simulated(seed, slow=None, factor=1.0, share=1.0, steps=STEPS, ranks=RANKS, flops=None):
    """2 % jitter, one step in 500 three times as long; `slow` works `factor` times as long in `share` of its steps."""
    generator = np.random.default_rng(seed)
    local = 1 + 0.02 * generator.standard_normal((steps, ranks))
    local[generator.random((steps, ranks)) < 0.002] *= 3
    if slow is not None:
        hit = generator.random(steps) < share
        local[hit, slow] *= factor
    if flops is not None:
        local = local * flops / flops.mean(axis=1, keepdims=True)
    log = Steps(np.arange(1, steps + 1), ranks, skipped=np.zeros(steps, bool))
    log.by_rank = {name: np.zeros((steps, ranks)) for name in DURATIONS}
    log.by_rank |= {
        "local_s": local,
        "step_s": np.repeat(local.max(axis=1, keepdims=True), ranks, axis=1),
        "flops": np.full((steps, ranks), np.nan) if flops is None else flops,
    }
    return [Attempt(0, 0.0, float(local.max(axis=1).sum()), ranks, ranks, log)]


def test_nobody_is_blamed_in_300_clean_runs():
    assert [seed for seed in range(300) if stragglers.find(simulated(seed, steps=400))] == []


@pytest.mark.parametrize(("factor", "least"), [(1.03, 0.9), (1.05, 1.0)])
def test_a_slow_rank_is_found(factor, least):
    found = [stragglers.find(simulated(seed, slow=13, factor=factor, steps=600)) for seed in range(40)]
    assert all({item.rank for item in items} <= {13} for items in found)
    assert sum(bool(items) for items in found) / len(found) >= least


def test_a_rank_that_is_slow_now_and_then_is_found():
    (item,) = stragglers.find(simulated(4, slow=9, factor=1.3, share=0.12, steps=1000))
    assert item.rank == 9
    assert item.slower_pct == pytest.approx(27, abs=6)


def test_a_rank_that_is_slow_in_a_tenth_of_the_steps_by_bursts_is_found():
    attempts = simulated(1)
    local = attempts[0].log.by_rank["local_s"]
    local[300:500, 5] *= 1.3
    (item,) = stragglers.find(attempts)
    assert (item.rank, item.windows, item.of_windows) == (5, 2, 20)
    assert item.slower_pct == pytest.approx(30, abs=2)


def test_a_slow_rank_is_blamed_on_the_node_where_it_was_slow():
    (before,), (after,) = simulated(1, slow=3, factor=1.2, steps=400, ranks=4), simulated(2, steps=400, ranks=4)
    before.nodes, after.nodes = ("node01", "node01", "node02", "node02"), ("node01", "node01", "node03", "node03")
    (item,) = stragglers.find([before, after])
    assert (item.rank, item.node, item.local_index) == (3, "node02", 1)
    assert (item.windows, item.of_windows) == (4, 4)


def test_the_cost_is_what_all_ranks_would_have_saved():
    # Four equal ranks without jitter, one of them 50 % slower: 0.5 s per step for four ranks.
    attempts = simulated(0, steps=200, ranks=4)
    local = attempts[0].log.by_rank["local_s"]
    local[:] = 1.0
    local[:, 2] = 1.5
    (item,) = stragglers.find(attempts)
    assert item.cost_rank_s == pytest.approx(0.5 * 4 * 200)


def test_a_rank_with_more_work_is_not_slow():
    flops = np.ones((600, 8))
    flops[:, 3] = 2.0
    assert stragglers.find(simulated(0, steps=600, ranks=8, flops=flops)) == []


def test_a_slow_rank_is_found_under_uneven_work():
    flops = np.random.default_rng(3).choice([0.5, 1.0, 2.0], (600, 8))
    found = stragglers.find(simulated(0, slow=6, factor=1.1, steps=600, ranks=8, flops=flops))
    assert [item.rank for item in found] == [6]


def test_two_ranks_are_enough_to_see_a_slow_one():
    found = stragglers.find(simulated(2, slow=1, factor=1.3, steps=200, ranks=2))
    assert [item.rank for item in found] == [1]


def test_one_rank_or_few_steps_blame_nobody():
    assert stragglers.find(simulated(0, slow=0, factor=2, ranks=1)) == []
    assert stragglers.find(simulated(0, slow=0, factor=2, steps=30)) == []


def test_the_slowest_of_many_is_explained_by_chance():
    lost, chance = stragglers.wait_for_slowest_pct(simulated(0))
    assert lost == pytest.approx(chance, rel=0.1)
    assert lost > 3


def test_a_slow_rank_loses_more_than_chance():
    lost, chance = stragglers.wait_for_slowest_pct(simulated(0, slow=13, factor=1.3))
    assert lost > 1.5 * chance


def test_one_rank_waits_for_nobody():
    assert stragglers.wait_for_slowest_pct(simulated(0, ranks=1)) == (None, None)


def node_of(attempts, slow, factor, nodes=4):
    """The same attempts with a node's ranks slowed, and each rank's node named."""
    (one,) = attempts
    ranks = one.log.ranks
    one.nodes = tuple(f"node{rank * nodes // ranks}" for rank in range(ranks))
    one.log.by_rank["local_s"][:, slow] *= factor
    return attempts


def test_a_whole_node_that_is_slow_costs_what_the_steps_would_have_been_shorter():
    attempts = node_of(simulated(0, steps=400), list(range(8, 16)), 1.2)
    local = attempts[0].log.by_rank["local_s"]
    found = stragglers.find(attempts)
    assert sorted(item.rank for item in found) == list(range(8, 16))
    others = np.delete(local, range(8, 16), axis=1).max(axis=1)
    saved = np.maximum(local.max(axis=1) - others, 0).sum() * RANKS
    assert sum(item.cost_rank_s for item in found) == pytest.approx(saved)
    (node,) = stragglers.slow_nodes(found, attempts)
    assert (node.node, node.ranks, node.of_ranks) == ("node1", list(range(8, 16)), 8)
    assert node.cost_rank_s == pytest.approx(saved)
    assert node.slower_pct == pytest.approx(20, abs=0.5)


def test_two_slow_ranks_share_the_cost_by_how_far_each_was_behind():
    attempts = node_of(simulated(0, steps=200, ranks=8), [], 1)
    local = attempts[0].log.by_rank["local_s"]
    local[:] = 1.0
    local[:, 2], local[:, 5] = 1.6, 1.2
    cost = {item.rank: item.cost_rank_s for item in stragglers.find(attempts)}
    assert cost == {2: pytest.approx(0.6 * 8 * 200 * 3 / 4), 5: pytest.approx(0.6 * 8 * 200 / 4)}


def test_a_node_with_a_few_slow_ranks_is_not_a_slow_node():
    attempts = node_of(simulated(0, steps=400), [8, 9], 1.2)
    assert stragglers.slow_nodes(stragglers.find(attempts), attempts) == []


def test_where_all_of_few_ranks_are_slow_the_fastest_is_the_measure_and_their_node_is_not_slower_than_others():
    """One of two is slow in its median step, the other in its slow ones."""
    generator = np.random.default_rng(0)
    attempts = node_of(simulated(0, steps=400, ranks=2), [], 1, nodes=1)
    local = attempts[0].log.by_rank["local_s"]
    local[:] = 1 + 0.001 * generator.standard_normal(local.shape)
    local[:, 0] *= 1.05
    local[::10, 1] = 2.0
    found = stragglers.find(attempts)
    assert {item.rank for item in found} == {0, 1}
    saved = (local.max(axis=1) - local.min(axis=1)).sum() * 2
    assert sum(item.cost_rank_s for item in found) == pytest.approx(saved)
    assert {item.node for item in found} == {"node0"}
    assert stragglers.slow_nodes(found, attempts) == []


def test_where_own_work_was_not_measured_nobody_is_slow():
    attempts = simulated(0, slow=3, factor=1.5, steps=400, ranks=4)
    attempts[0].log.by_rank["local_s"][:] = np.nan
    assert stragglers.find(attempts) == []
    assert stragglers.wait_for_slowest_pct(attempts) == (None, None)
