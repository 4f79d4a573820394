"""Summaries of a clean run, for rules and rendering; tests change what they are about."""

import copy
from typing import Any

from brickreel.telemetry.goodput import CAUSES

GPU = {
    "device": "gpu0",
    "node": "node0",
    "name": "NVIDIA H100 80GB HBM3",
    "wall_s": 36000.0,
    "kernel_time_pct": 98.0,
    "sm_active_pct": 85.0,
    "sm_occupancy_pct": 40.0,
    "tensor_pct": 45.0,
    "dram_pct": 50.0,
    "energy_j": 2.0e7,
    "energy_s": 36000.0,
    "power_w": 600.0,
    "temp_max_c": 65.0,
    "mem_peak_b": 70.0 * 2**30,
    "mem_total_b": 80.0 * 2**30,
    "sm_mhz": 1755.0,
    "clock_ratio_pct": 88.6,
    "throttle_power_pct": 10.0,
    "throttle_thermal_pct": 0.0,
    "throttle_hw_pct": 0.0,
    "throttle_brake_pct": 0.0,
    "ecc_uncorrected": 0.0,
    "pcie_replays": 0.0,
    "nvlink_errors": 0.0,
    "remap_pending": 0.0,
    "remap_failed": 0.0,
    "xids": [],
}
HOST = {
    "node": "node0",
    "cores_mean": 12.0,
    "cores_allowed": 104.0,
    "run_delay_pct": 1.0,
    "throttled_pct": 0.0,
    "mem_peak_gib": 100.0,
    "net_rx_gib": 1.0,
    "net_tx_gib": 1.0,
    "coverage_pct": 100.0,
    "recorded_hours": 10.0,
    "of_hours": 10.0,
}
PORT = {
    "port": "mlx5_0/1",
    "node": "node0",
    "line_rate_gb_s": 400.0,
    "line_rate_lowest_gb_s": 400.0,
    "tx_gb_s": 40.0,
    "tx_peak_gb_s": 200.0,
    "rx_gb_s": 40.0,
    "rx_peak_gb_s": 200.0,
    "link_downed": 0.0,
    "symbol_errors": 0.0,
    "link_recoveries": 0.0,
    "xmit_wait": 5.0,
}
STAGE = {
    "stage": "analyze",
    "recordings": 4,
    "nodes": 1,
    "elapsed_s": 600.0,
    "node_hours": 0.6,
    "cpu_core_hours": 1.0,
    "cores_mean": 1.8,
    "cores_p99": 2.0,
    "cores_allowed": 2.0,
    "node_cores": 104.0,
    "tasks_per_node": 1,
    "in_slurm": True,
    "oom_kills": 0.0,
    "cpu_use_pct": 90.0,
    "mem_peak_gib": 3.0,
    "mem_limit_gib": 4.0,
    "read_gib": 1.0,
    "write_gib": 1.0,
    "run_delay_pct": 1.0,
    "coverage_pct": 100.0,
}


def run(name: str = "run", **changes: Any) -> dict[str, Any]:
    """A clean run of 10 hours on two nodes with two GPUs each."""
    shares = dict.fromkeys(CAUSES, 0.0) | {"goodput": 95.0, "init": 1.0, "comm_exposed": 3.0, "checkpoint": 1.0}
    devices = [GPU | {"node": f"node{node}", "device": f"gpu{index}"} for node in range(2) for index in range(2)]
    return {
        "run": name,
        "steps_kept": 1000,
        "gpu_hours": 40.0,
        "rank_hours": 40.0,
        "time_pct": shares,
        "data_wait_pct": 0.5,
        "mfu_pct": 38.0,
        "stragglers": [],
        "slow_nodes": [],
        "gpu_devices": devices,
        "hosts": [HOST, HOST | {"node": "node1"}],
        "ports": [PORT, PORT | {"node": "node1"}],
        "preflight": {"verdict": "pass", "checks": [{"name": "clock", "node": "node0", "result": "pass"}]},
    } | copy.deepcopy(changes)


def summary(*runs: dict[str, Any], stages: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A project with these runs (one clean run without any)."""
    return copy.deepcopy({"runs": list(runs) or [run()], "stages": [STAGE] if stages is None else stages})


def devices(**changes: Any) -> list[dict[str, Any]]:
    """The GPUs of a clean run, the second of them changed."""
    rows = run()["gpu_devices"]
    rows[1] |= changes
    return rows
