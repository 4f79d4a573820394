"""A training run on many nodes with GPUs, as files: recordings, step logs and attempts with known content."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from brickreel import files
from brickreel.telemetry import columns, recordings

START_S = 1_790_000_000.0
GIB = 2**30


def write_run(
    folder: Path,
    name: str = "big",
    nodes: int = 4,
    gpus: int = 8,
    hours: float = 1.0,
    step_s: float = 10.0,
    slow_rank: int | None = None,
    slower: float = 1.05,
    finished: bool = False,
    seed: int = 0,
) -> None:
    """One attempt of `hours` on `nodes` x `gpus` ranks; half a minute of start-up, then steps of `step_s`."""
    generator = np.random.default_rng(seed)
    place = folder / "logs/telemetry/train" / name
    place.mkdir(parents=True, exist_ok=True)
    names = [f"node{number:03d}" for number in range(nodes)]
    seconds = int(hours * 3600)
    for number, node in enumerate(names):
        slow = None if slow_rank is None or slow_rank // gpus != number else slow_rank % gpus
        path = place / f"1-{node}.arrow"
        write_recording(path, node, seconds, gpus, generator, slow)
        if finished:
            recordings.finish(path)
    train = folder / "results/train" / name
    ranks = nodes * gpus
    log = {"attempt": 0, "world_size": ranks, "nodes": [node for node in names for _ in range(gpus)], "gpus": ranks}
    log |= {"job_id": "77", "backend": "ddp", "outcome": "ok", "reason": ""}
    steps = int((seconds - 30 - 5) / step_s)
    files.append_json_line(
        train / "attempts.jsonl", log | {"event": "start", "time_s": START_S, "first_step": 1, "last_step": None}
    )
    files.append_json_line(
        train / "attempts.jsonl",
        log | {"event": "end", "time_s": START_S + seconds, "first_step": None, "last_step": steps},
    )
    write_steps(train / "steps", steps, ranks, step_s, generator, slow_rank, slower)


def write_steps(folder, steps, ranks, step_s, generator, slow_rank=None, slower=1.05, attempt=0, first=1, start_s=None):
    """Step logs: own work of 70 % of a step with 2 % jitter; all wait for the slowest rank, then communicate."""
    folder.mkdir(parents=True, exist_ok=True)
    local = 0.7 * step_s * (1 + 0.02 * generator.standard_normal((steps, ranks)))
    if slow_rank is not None:
        local[:, slow_rank] *= slower
    whole = local.max(axis=1) + 0.05 * step_s
    ends = (START_S + 30 if start_s is None else start_s) + np.cumsum(whole)
    for rank in range(ranks):
        lines = [
            f'{{"attempt": {attempt}, "rank": {rank}, "step": {first + step}, "time_s": {ends[step]:.4f}, '
            f'"step_s": {whole[step]:.5f}, "data_s": 0.01, "forward_s": 1.0, "backward_s": 2.0, '
            f'"comm_s": {whole[step] - local[step, rank]:.5f}, "optimizer_s": 0.02, "checkpoint_s": 0.0, '
            f'"gauge_s": 0.0, "local_s": {local[step, rank]:.5f}, "samples": 4, "sample_ids": ["a", "b", "c", "d"], '
            f'"tokens": 40000, "flops": {3.5e14 * step_s:.4g}, "loss": {0.5 + 1 / (step + 2):.5f}, "grad_norm": 0.5, '
            f'"weight_norm": 9.0, "lr": 1e-4, "skipped": false}}'
            for step in range(steps)
        ]
        (folder / f"{attempt}-{rank}.jsonl").write_text("\n".join(lines) + "\n")


def write_recording(path: Path, node: str, seconds: int, gpus: int, generator, slow_gpu: int | None = None) -> None:
    """A stream as the sampler writes it: 1 Hz, one host, GPUs with two ports for each."""
    count = seconds + 1
    ticks = np.arange(count, dtype=float)
    ports = [f"mlx5_{number}/1" for number in range(gpus)]
    parts = [("", _host(ticks))]
    parts += [(f"gpu{index}", _gpu(ticks, generator, index == slow_gpu)) for index in range(gpus)]
    parts += [(port, _port(ticks)) for port in ports]
    schema = _schema({"period_s": "1.0", "node": node, "job_id": "77", "kernel": "6.1", "pid": "1"})
    with pa.OSFile(str(path), "wb") as sink:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(sink, schema, options=options) as writer:
            names = [(f"gpu{index}", "device", f"NVIDIA H100 80GB HBM3|GPU-{index}") for index in range(gpus)]
            writer.write_table(_table(schema, {"time_s": [START_S] * gpus, "mono_s": [0.0] * gpus,
                                               "device": [n for n, _, _ in names], "event": [e for _, e, _ in names],
                                               "detail": [d for _, _, d in names]}, gpus))  # fmt: skip
            for device, values in parts:
                values = {"time_s": START_S + ticks, "mono_s": ticks, "device": [device] * count} | values
                writer.write_table(_table(schema, values, count))


def _schema(facts: dict[str, str]) -> pa.Schema:
    fields = [("time_s", pa.float64()), ("mono_s", pa.float64()), ("device", pa.string())]
    fields += [(name, pa.float64()) for name in columns.NAMES] + [("event", pa.string()), ("detail", pa.string())]
    return pa.schema(fields, metadata=facts)


def _table(schema: pa.Schema, values: dict, count: int) -> pa.Table:
    return pa.table(
        [pa.array(values[f.name], f.type) if f.name in values else pa.nulls(count, f.type) for f in schema],
        schema=schema,
    )


def _host(ticks: np.ndarray) -> dict:
    busy = 12.0 * ticks
    return {
        "node_cpu_busy_s": busy,
        "node_cores": np.full(len(ticks), 104.0),
        "allowed_cores": np.full(len(ticks), 104.0),
        "node_mem_total_b": np.full(len(ticks), 1024.0 * GIB),
        "node_mem_available_b": np.full(len(ticks), 800.0 * GIB),
        "tree_cpu_s": busy,
        "tree_run_delay_s": 0.01 * ticks,
        "tree_rss_b": np.full(len(ticks), 90.0 * GIB),
        "cgroup_cpu_s": busy,
        "cgroup_throttled_s": np.zeros(len(ticks)),
        "cgroup_mem_b": np.full(len(ticks), 90.0 * GIB),
        "cgroup_mem_peak_b": np.full(len(ticks), 120.0 * GIB),
        "cgroup_mem_limit_b": np.full(len(ticks), 900.0 * GIB),
        "cgroup_oom_kills": np.zeros(len(ticks)),
        "net_rx_b": 1e6 * ticks,
        "net_tx_b": 1e6 * ticks,
    }


def _gpu(ticks: np.ndarray, generator, slow: bool) -> dict:
    noise = generator.standard_normal(len(ticks))
    working = ticks > 30
    return {
        "kernel_time_pct": np.where(working, 99.0, 0.0),
        "sm_active_pct": np.where(working, 80 + 2 * noise, 0.0),
        "sm_occupancy_pct": np.where(working, 40.0, 0.0),
        "tensor_pct": np.where(working, 40 + noise, 0.0),
        "dram_pct": np.where(working, 50.0, 0.0),
        "gpu_mem_used_b": np.where(working, 70.0 * GIB, 2.0 * GIB),
        "gpu_mem_total_b": np.full(len(ticks), 80.0 * GIB),
        "gpu_power_w": np.where(working, 600 + 5 * noise, 100.0),
        "gpu_energy_j": 600.0 * ticks,
        "gpu_temp_c": np.where(working, 65.0, 30.0),
        "sm_mhz": np.full(len(ticks), 1395.0 if slow else 1755.0),
        "sm_max_mhz": np.full(len(ticks), 1980.0),
        "throttle_power_s": 0.1 * ticks,
        "throttle_thermal_s": np.zeros(len(ticks)),
        "throttle_hw_s": 0.2 * ticks if slow else np.zeros(len(ticks)),
        "throttle_brake_s": np.zeros(len(ticks)),
        "ecc_uncorrected": np.zeros(len(ticks)),
        "remap_pending": np.zeros(len(ticks)),
        "remap_failed": np.zeros(len(ticks)),
        "pcie_replays": np.zeros(len(ticks)),
        "nvlink_errors": np.zeros(len(ticks)),
    }


def _port(ticks: np.ndarray) -> dict:
    return {
        "ib_tx_b": 5e9 * ticks,
        "ib_rx_b": 5e9 * ticks,
        "ib_rate_gb_s": np.full(len(ticks), 400.0),
        "ib_link_downed": np.zeros(len(ticks)),
        "ib_symbol_errors": np.zeros(len(ticks)),
        "ib_link_recoveries": np.zeros(len(ticks)),
        "ib_xmit_wait": np.zeros(len(ticks)),
    }


def configuration(folder: Path, *runs: str) -> Path:
    """A project's config.json with these runs."""
    path = folder / "config.json"
    path.write_text(json.dumps({"project": {"name": "fleet", "runs": list(runs)}, "runs": {run: {} for run in runs}}))
    return path
