"""Every rule fires on what it is about, says where and what to do, and stays silent on a clean run."""

import pytest

from brickreel.telemetry import findings
from telemetry import summaries
from telemetry.summaries import PORT, STAGE, devices, run, summary

SLOW = {
    "rank": 1,
    "node": "node0",
    "local_index": 1,
    "slower_pct": 5.1,
    "windows": 4,
    "of_windows": 10,
    "cost_hours": 2.0,
}
CLEAN = summaries.run()["time_pct"]

# Rule -> (summary that fires it, words that must stand in claim or next step)
FIRING = {
    "straggler": (summary(run(stragglers=[SLOW])), ["rank 1", "node0", "5.1 %", "--exclude=node0"]),
    "starved": (summary(run(data_wait_pct=7.0, time_pct=CLEAN | {"data": 7.0})), ["7.0 %", "loader_threads"]),
    "broken gpu": (summary(run(gpu_devices=devices(xids=["79"]))), ["gpu1 of node0", "XID 79", "--exclude=node0"]),
    "throttled": (summary(run(gpu_devices=devices(throttle_hw_pct=1.0))), ["gpu1 of node0", "heat", "node0"]),
    "network": (summary(run(ports=[PORT | {"link_downed": 2.0}, PORT])), ["mlx5_0/1", "2 times down"]),
    "preflight": (
        summary(
            run(preflight={"exclude": ["node1"], "checks": [{"name": "bandwidth", "node": "node1", "result": "fail"}]})
        ),
        ["bandwidth", "--exclude=node1"],
    ),
    "busy, not computing": (
        summary(run(gpu_devices=[gpu | {"tensor_pct": 12.0} for gpu in devices()])),
        ["98.0 %", "12.0 %", "buckets"],
    ),
    "checkpoint": (summary(run(time_pct=CLEAN | {"checkpoint": 6.0})), ["6.0 %", "checkpoint_every"]),
    "redone": (summary(run(time_pct=CLEAN | {"redone": 12.0})), ["12.0 %", "checkpoint_every"]),
    "start-up": (summary(run(time_pct=CLEAN | {"init": 30.0})), ["30.0 %"]),
    "unexplained": (summary(run(time_pct=CLEAN | {"unknown": 8.0})), ["8.0 %"]),
    "memory headroom": (
        summary(run(gpu_devices=[gpu | {"mem_peak_b": 40.0 * 2**30} for gpu in devices()])),
        ["50 %", "1.8 times"],
    ),
    "memory": (summary(stages=[STAGE | {"oom_kills": 1.0}]), ["analyze", "killed", "mem_mb: 6144"]),
    "CPU over-request": (
        summary(stages=[STAGE | {"cores_allowed": 64.0, "cores_p99": 4.0}]),
        ["64 cores", "set-resources: {analyze: {cpus_per_task: 5}}"],
    ),
    "coverage": (summary(stages=[STAGE | {"coverage_pct": 90.0}]), ["10.0 %", "period_s"]),
}


def test_a_clean_run_has_no_findings():
    assert findings.find(summary()) == []


def test_every_rule_has_a_case():
    assert set(FIRING) == {rule.name for rule in findings.RULES}


@pytest.mark.parametrize("name", FIRING)
def test_a_rule_fires_with_evidence_and_a_next_step(name):
    tree, words = FIRING[name]
    found = findings.find(tree)
    assert {item["rule"] for item in found} == {name}, "and no other rule fires"
    item = found[0]
    for word in words:
        assert word in item["claim"] + " " + item["do"]
    assert item["evidence"]
    assert item["threshold"]
    assert item["where"]


@pytest.mark.parametrize(
    "changes",
    [
        {"data_wait_pct": 1.9, "time_pct": CLEAN | {"data": 1.9}},
        {"gpu_devices": devices(throttle_power_pct=49.0)},
        {"gpu_devices": devices(throttle_hw_pct=0.1)},
        {"time_pct": CLEAN | {"checkpoint": 3.0, "redone": 5.0, "init": 10.0, "unknown": 5.0}},
        {"ports": [PORT, PORT | {"tx_gb_s": 21.0}]},
        {"ports": [PORT, PORT | {"port": "mlx5_9/1", "line_rate_gb_s": 200.0, "tx_gb_s": 0.1}]},
        {"gpu_devices": [gpu | {"tensor_pct": None} for gpu in devices()]},
        {"gpu_devices": [], "ports": [], "hosts": [], "preflight": None, "time_pct": None, "mfu_pct": None},
    ],
)
def test_what_is_within_the_threshold_or_was_not_measured_is_silent(changes):
    assert findings.find(summary(run(**changes))) == []


def test_losses_of_seconds_are_not_worth_a_sentence():
    short = run(gpu_hours=0.01, rank_hours=0.01, data_wait_pct=50.0, time_pct=CLEAN | {"data": 50.0})
    assert findings.find(summary(short)) == []


def test_a_slow_rank_that_costs_nothing_is_not_worth_a_sentence():
    assert findings.find(summary(run(stragglers=[SLOW | {"cost_hours": 0.03}]))) == []


def test_a_power_cap_is_a_note_and_heat_is_an_error():
    found = findings.find(summary(run(gpu_devices=devices(throttle_power_pct=80.0, throttle_hw_pct=5.0))))
    assert [(item["severity"], "power cap" in item["claim"]) for item in found] == [("error", False), ("note", True)]


def test_a_slow_rank_names_what_its_gpu_shows():
    gpus = devices(sm_mhz=1395.0, throttle_hw_pct=20.0)
    claim = next(
        item["claim"]
        for item in findings.find(summary(run(stragglers=[SLOW], gpu_devices=gpus)))
        if item["rule"] == "straggler"
    )
    assert "1,395 MHz, that of its peers 1,755 MHz" in claim
    assert "slowed by hardware for heat for 20.0 %" in claim


def test_a_slow_rank_names_what_its_node_shows():
    hosts = [summaries.HOST | {"throttled_pct": 30.0}, summaries.HOST | {"node": "node1"}]
    claim = findings.find(summary(run(stragglers=[SLOW], hosts=hosts)))[0]["claim"]
    assert "throttled for 30.0 %" in claim


def test_on_a_single_crowded_node_the_crowd_is_the_cause():
    hosts = [summaries.HOST | {"run_delay_pct": 60.0}]
    claim = findings.find(summary(run(stragglers=[SLOW], hosts=hosts)))[0]["claim"]
    assert "waited for a core for 60.0 %" in claim


def test_where_all_nodes_are_crowded_the_crowd_is_named_too():
    hosts = [summaries.HOST | {"run_delay_pct": 41.0}, summaries.HOST | {"node": "node1", "run_delay_pct": 47.0}]
    claim = findings.find(summary(run(stragglers=[SLOW], hosts=hosts)))[0]["claim"]
    assert "waited for a core for 41.0 % of the time; so did those of other nodes" in claim


def test_a_whole_node_is_never_told_to_ask_for_fewer_cores():
    assert findings.find(summary(stages=[STAGE | {"cores_allowed": 104.0, "cores_p99": 3.0}])) == []


def test_outside_slurm_requests_are_not_judged():
    stage = STAGE | {"in_slurm": False, "cores_allowed": 64.0, "cores_p99": 4.0, "mem_peak_gib": 3.99}
    assert findings.find(summary(stages=[stage])) == []


def test_errors_come_before_warnings_and_the_costly_before_the_cheap():
    cheap = run("cheap", data_wait_pct=4.0, time_pct=CLEAN | {"data": 4.0})
    costly = run("costly", data_wait_pct=9.0, time_pct=CLEAN | {"data": 9.0})
    broken = run("broken", gpu_devices=devices(xids=["79"]))
    found = findings.find(summary(cheap, costly, broken))
    assert [item["claim"].split(":")[0] for item in found] == ["broken", "costly", "cheap"]


def test_a_preflight_that_blames_no_node_excludes_none():
    checks = [{"name": name, "node": "all", "result": "fail"} for name in ("all_reduce 1 MiB", "equal shares")]
    (item,) = findings.find(summary(run(preflight={"exclude": [], "checks": checks})))
    assert item["claim"] == "run: preflight failed: all_reduce 1 MiB, and 1 more."
    assert "exclude" not in item["do"]
