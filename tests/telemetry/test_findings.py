"""Every rule fires on what it is about, says where and what to do, and stays silent on a clean run."""

import pytest
import yaml

from brickreel import config
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
SLOW_NODE = {"node": "node1", "ranks": [2, 3], "of_ranks": 2, "slower_pct": 20.0, "cost_hours": 6.0}
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
    "skipped": (summary(run(time_pct=CLEAN | {"skipped": 8.0})), ["8.0 %", "skipped", "lr"]),
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


def test_lines_to_change_in_the_configuration_are_known_to_it():
    lines = [item["do"] for tree, _ in FIRING.values() for item in findings.find(tree) if "config.yaml" in item["do"]]
    lines = [line for line in lines if line.startswith("runs:")]
    assert len(lines) >= 4
    for line in lines:
        try:
            config.load(yaml.safe_load(line))
        except ValueError as error:  # a place to be filled in
            assert "unknown" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "changes",
    [
        {"data_wait_pct": 1.9, "time_pct": CLEAN | {"data": 1.9}},
        {"gpu_devices": devices(throttle_power_pct=49.0)},
        {"gpu_devices": devices(throttle_hw_pct=0.1)},
        {"time_pct": CLEAN | {"checkpoint": 3.0, "redone": 5.0, "skipped": 1.0, "init": 10.0, "unknown": 5.0}},
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
    assert "Gpu1 of its node: the SM clock is 1,395 MHz, that of its peers 1,755 MHz" in claim
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


def test_a_node_without_a_recording_is_a_finding_only_where_others_have_one():
    silent = summaries.HOST | {"node": "node1", "recorded_hours": 0.0}
    (item,) = findings.find(summary(run(hosts=[summaries.HOST, silent])))
    assert (item["rule"], item["evidence"]["nodes"]) == ("coverage", ["node1"])
    assert findings.find(summary(run(hosts=[silent, silent | {"node": "node0"}]))) == [], "telemetry may be off"


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


def test_a_slow_node_is_one_finding_and_its_ranks_are_none():
    ranks = [SLOW | {"rank": rank, "node": "node1", "local_index": rank - 2, "cost_hours": 3.0} for rank in (2, 3)]
    (item,) = findings.find(summary(run(stragglers=ranks, slow_nodes=[SLOW_NODE])))
    assert (
        "2 of the 2 ranks of node1 are slow: their own work takes 20.0 % longer than that of other nodes"
        in item["claim"]
    )
    assert (item["cost_hours"], item["do"].endswith("--exclude=node1")) == (6.0, True)


def test_a_slow_node_that_costs_nothing_is_not_worth_a_sentence():
    assert findings.find(summary(run(slow_nodes=[SLOW_NODE | {"cost_hours": 0.03}]))) == []


def test_the_gpu_that_shows_something_is_named_whichever_rank_it_served():
    """GPUs 4 to 7 were allotted: the rank's index on the node is not NVML's."""
    gpus = [summaries.GPU | {"device": f"gpu{index}"} for index in range(4, 8)]
    gpus[0] |= {"throttle_hw_pct": 90.0}
    claims = [item["claim"] for item in findings.find(summary(run(stragglers=[SLOW], gpu_devices=gpus)))]
    assert any("Gpu4 of its node: slowed by hardware for heat for 90.0 %" in claim for claim in claims)


def test_gpus_that_show_nothing_and_gpus_that_were_not_recorded_are_told_apart():
    clean = findings.find(summary(run(stragglers=[SLOW])))[0]["claim"]
    assert clean.endswith("No throttling or error was recorded on the GPUs of its node.")
    unseen = findings.find(summary(run(stragglers=[SLOW], gpu_devices=[])))[0]["claim"]
    assert unseen.endswith("What slows it is not known: throttling of its node's GPUs was not measured.")
    nowhere = findings.find(summary(run(stragglers=[SLOW], hosts=[])))[0]["claim"]
    assert nowhere.endswith("What slows it is not known: its node was not recorded.")


def test_skipped_steps_are_not_called_computed_again():
    (item,) = findings.find(summary(run(time_pct=CLEAN | {"skipped": 8.0})))
    assert "again" not in item["claim"]
    assert "not finite, or no sample readable; the training log says which" in item["claim"]
    assert "checkpoint" not in item["do"]


def test_hours_are_those_of_the_run_that_lost_them():
    idle = run("idle", gpu_hours=None, rank_hours=0.0)
    slow = run("slow", data_wait_pct=9.0, time_pct=CLEAN | {"data": 9.0, "redone": 9.0}, stragglers=[SLOW])
    found = findings.find(summary(idle, slow))
    assert [item["cost_unit"] for item in found] == ["GPU-hours"] * 3
    cpu = run("cpu", gpu_hours=None, data_wait_pct=9.0, time_pct=CLEAN | {"data": 9.0})
    assert findings.find(summary(cpu))[0]["cost_unit"] == "rank-hours"


def test_a_link_that_lost_a_part_of_its_rate_is_a_finding():
    (item,) = findings.find(summary(run(ports=[PORT | {"line_rate_lowest_gb_s": 100.0}, PORT])))
    assert "its line rate changed during the run, down to 100 of 400 Gb/s" in item["claim"]


def test_a_node_that_was_not_recorded_is_a_finding():
    hosts = [summaries.HOST, summaries.HOST | {"node": "node1", "cores_mean": None, "recorded_hours": 1.0}]
    (item,) = findings.find(summary(run(hosts=hosts)))
    assert (item["rule"], "9 node-hours were not recorded, of node1" in item["claim"]) == ("coverage", True)


def test_cores_that_were_used_for_a_moment_are_not_denied():
    (item,) = findings.find(summary(stages=[STAGE | {"cores_allowed": 32.0, "cores_p99": 5.0}]))
    assert item["claim"] == "analyze: of 32 cores it used at most 5.0 for 99 % of the time."


def test_cores_of_ranks_that_share_a_node_are_counted_by_rank():
    ranks = STAGE | {"tasks_per_node": 8, "cores_allowed": 64.0, "node_cores": 104, "cores_p99": 20.0}
    (item,) = findings.find(summary(stages=[ranks]))
    assert item["do"].startswith("set-resources: {analyze: {cpus_per_task: 3}}")
    assert findings.find(summary(stages=[ranks | {"cores_allowed": 8.0, "cores_p99": 3.0}])) == []
