"""What the machines did: recordings reduced to one summary per recording, stage and GPU. Pure arithmetic."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brickreel.telemetry import recordings
from brickreel.telemetry.recordings import Array, Recording

if TYPE_CHECKING:
    from brickreel.telemetry.digest import Digest

GPU_MEANS = ("kernel_time_pct", "sm_active_pct", "sm_occupancy_pct", "tensor_pct", "dram_pct")
THROTTLES = ("power", "thermal", "hw", "brake")
WHOLE_PCT = 98.0
"""What covers less of the time is told as a part."""
LAST_BATCH_S = 15.0
"""Recorders write every ten seconds, and start within seconds of each other."""


def host(recording: Recording) -> dict[str, Any]:
    """CPU, memory and IO of one recording. What was not measured is None."""
    rows = recording.devices[""]
    wall_s = float(rows["mono_s"][-1] - rows["mono_s"][0])
    source = cpu_source(recording)
    recorded_s = recordings.increase(rows[f"{source}_cpu_s"])
    rates, _ = recordings.rate(rows[f"{source}_cpu_s"], rows["mono_s"])
    # Not memory.peak: it holds the cache of files, which grows up to the limit and is given back when it is needed.
    memory = "cgroup_mem_b" if source == "cgroup" and _known(rows, "cgroup_mem_b") else "tree_rss_b"
    io = "cgroup" if source == "cgroup" and _known(rows, "cgroup_read_b") else "tree"
    expected = wall_s / recording.period_s + 1
    return {
        "wall_s": wall_s,
        # The process tree's CPU time counts from its start: what it used before the first sample is the stage's too.
        "cpu_s": recordings.highest(rows["tree_cpu_s"]) if source == "tree" else recorded_s,
        "cpu_recorded_s": recorded_s,
        "cpu_source": source,
        "io_source": io,
        "cores_p99": recordings.percentile(rates[_long_enough(rows["mono_s"], recording.period_s)], 99),
        "cores_allowed": recordings.highest(rows["allowed_cores"]),
        "node_cores": recordings.highest(rows["node_cores"]),
        "node_busy_cores": _ratio(recordings.increase(rows["node_cpu_busy_s"]), wall_s),
        "run_delay_s": recordings.increase(rows["tree_run_delay_s"]),
        "throttled_s": recordings.increase(rows["cgroup_throttled_s"]),
        "mem_peak_b": recordings.highest(rows[memory]),
        "mem_limit_b": recordings.highest(rows["cgroup_mem_limit_b"]),
        "node_mem_b": recordings.highest(rows["node_mem_total_b"]),
        "oom_kills": recordings.increase(rows["cgroup_oom_kills"]),
        "read_b": recordings.increase(rows[f"{io}_read_b"]),
        "write_b": recordings.increase(rows[f"{io}_write_b"]),
        "fs_read_b": recordings.increase(rows["fs_read_b"]),
        "fs_write_b": recordings.increase(rows["fs_write_b"]),
        "net_rx_b": recordings.increase(rows["net_rx_b"]),
        "net_tx_b": recordings.increase(rows["net_tx_b"]),
        "samples": len(rows["mono_s"]),
        "samples_expected": expected,
        "coverage_pct": min(100.0, 100 * len(rows["mono_s"]) / expected),
    }


def cpu_source(recording: Recording) -> str:
    """`cgroup` in a Slurm job, where the cgroup is the job's; elsewhere it may be the whole login session: `tree`."""
    return "cgroup" if recording.facts.get("job_id") and _known(recording.devices[""], "cgroup_cpu_s") else "tree"


def _known(rows: dict[str, Array], column: str) -> bool:
    return bool((~np.isnan(rows[column])).any())


def _long_enough(mono_s: Array, period_s: float) -> NDArray[np.bool_]:
    """Intervals of at least half a period: shorter ones, as at the end, give wild rates."""
    return np.diff(mono_s) >= period_s / 2


def _ratio(amount: float | None, over: float) -> float | None:
    return None if amount is None or over <= 0 else amount / over


def gpu(recording: Recording, device: str) -> dict[str, Any]:
    """Activity, energy, memory, clocks, throttling and errors of one GPU. What was not measured is None."""
    rows = recording.devices[device]
    wall_s = float(rows["mono_s"][-1] - rows["mono_s"][0])
    name = next((e.detail.split("|")[0] for e in recording.events if (e.device, e.event) == (device, "device")), None)
    result: dict[str, Any] = {"device": device, "node": recording.node, "name": name, "wall_s": wall_s}
    for column in GPU_MEANS:
        result[column] = recordings.mean(rows[column])
    result["energy_j"] = recordings.increase(rows["gpu_energy_j"])
    result["energy_s"] = _read_s(rows["gpu_energy_j"], rows["mono_s"])
    result["power_w"] = recordings.mean(rows["gpu_power_w"])
    result["temp_max_c"] = recordings.highest(rows["gpu_temp_c"])
    result["mem_peak_b"] = recordings.highest(rows["gpu_mem_used_b"])
    result["mem_total_b"] = recordings.highest(rows["gpu_mem_total_b"])
    result["sm_mhz"] = recordings.mean(rows["sm_mhz"])
    clock, top = result["sm_mhz"], recordings.highest(rows["sm_max_mhz"])
    result["clock_ratio_pct"] = 100 * clock / top if clock is not None and top else None
    for cause in THROTTLES:
        throttled = recordings.increase(rows[f"throttle_{cause}_s"])
        result[f"throttle_{cause}_pct"] = None if throttled is None or wall_s <= 0 else 100 * throttled / wall_s
    for column in ("ecc_uncorrected", "pcie_replays", "nvlink_errors"):
        result[column] = recordings.increase(rows[column])
    result["remap_pending"] = recordings.highest(rows["remap_pending"])
    result["remap_failed"] = recordings.highest(rows["remap_failed"])
    result["xids"] = [e.detail for e in recording.events if (e.device, e.event) == (device, "xid")]
    return result


def _read_s(values: Array, mono_s: Array) -> float | None:
    """Seconds from a counter's first reading to its last one."""
    read = mono_s[~np.isnan(values)]
    return float(read[-1] - read[0]) if len(read) > 1 else None


def port(recording: Recording, name: str) -> dict[str, Any]:
    """Traffic and errors of one InfiniBand port."""
    rows = recording.devices[name]
    result: dict[str, Any] = {
        "port": name,
        "node": recording.node,
        "line_rate_gb_s": recordings.highest(rows["ib_rate_gb_s"]),
        "line_rate_lowest_gb_s": recordings.lowest(rows["ib_rate_gb_s"]),
    }
    for direction in ("tx", "rx"):
        rates, _ = recordings.rate(rows[f"ib_{direction}_b"], rows["mono_s"])
        gigabits = rates * 8e-9
        result[f"{direction}_gb_s"] = recordings.mean(gigabits)
        result[f"{direction}_peak_gb_s"] = recordings.highest(gigabits)
    for column in ("ib_link_downed", "ib_symbol_errors", "ib_link_recoveries", "ib_xmit_wait"):
        result[column.removeprefix("ib_")] = recordings.increase(rows[column])
    return result


def stage(name: str, parts: Sequence["Digest"]) -> dict[str, Any]:
    """All recordings of a stage as one row."""
    hosts = [_counted_once(part.host, share) for part, share in zip(parts, _shares_of_jobs(parts), strict=True)]
    wall_s = sum(part.host["wall_s"] for part in parts)
    cpu_wall_s = sum(host["wall_s"] for host in hosts)
    cpu_s = total(host["cpu_s"] for host in hosts)
    recorded_s = total(host["cpu_recorded_s"] for host in hosts)
    requested_core_s = total(_times(host["cores_allowed"], host["wall_s"]) for host in hosts)
    kills = total(host["oom_kills"] for host in hosts)
    return {
        "stage": name,
        "recordings": len(parts),
        "nodes": len({part.node for part in parts}),
        "elapsed_s": covered_s([part.span_s for part in parts]),
        "node_hours": wall_s / 3600,
        "cpu_core_hours": None if cpu_s is None else cpu_s / 3600,
        "cores_mean": _ratio(recorded_s, cpu_wall_s),
        "cores_p99": largest(host["cores_p99"] for host in hosts),
        "cores_allowed": largest(host["cores_allowed"] for host in hosts),
        "node_cores": largest(host["node_cores"] for host in hosts),
        "tasks_per_node": max(int(part.facts.get("tasks") or 1) for part in parts),
        "in_slurm": any(part.facts.get("job_id") for part in parts),
        # A kill that not all of the job's recordings saw is a fraction.
        "oom_kills": None if kills is None else math.ceil(kills - 1e-9),
        "cpu_use_pct": None if not requested_core_s or recorded_s is None else 100 * recorded_s / requested_core_s,
        "mem_peak_gib": _gib(largest(host["mem_peak_b"] for host in hosts)),
        "mem_limit_gib": _gib(largest(host["mem_limit_b"] for host in hosts)),
        "read_gib": _gib(total(host["read_b"] for host in hosts)),
        "write_gib": _gib(total(host["write_b"] for host in hosts)),
        "run_delay_pct": _percent(total(host["run_delay_s"] for host in hosts), wall_s),
        "coverage_pct": _coverage(hosts),
        # GPUs that the stage could use, whether or not it did; what Slurm allocated stands beside it.
        "gpu_hours_seen": _hours(total(seconds for seconds, _ in _gpus_once(parts))),
        "gpu_kwh": _kwh(total(joules for _, joules in _gpus_once(parts))),
        "sm_active_pct": _by_time([(gpu["sm_active_pct"], gpu["wall_s"]) for part in parts for gpu in part.gpus]),
    }


def _shares_of_jobs(parts: Sequence["Digest"]) -> list[float]:
    """What of each recording's cgroup counts: recordings side by side in one Slurm job all read the job's own."""
    groups: dict[tuple[str, str], list[Digest]] = {}
    for part in parts:
        groups.setdefault((part.node, part.facts.get("job_id", "")), []).append(part)
    shares = {}
    for key, found in groups.items():
        recorded_s = sum(part.host["wall_s"] for part in found)
        shares[key] = min(1.0, covered_s([part.span_s for part in found]) / recorded_s) if recorded_s else 1.0
    return [shares[part.node, part.facts.get("job_id", "")] for part in parts]


def _counted_once(host: dict[str, Any], share: float) -> dict[str, Any]:
    """A host's row with this share of what was read from the job's cgroup; what is the processes' own stays whole."""
    job = {"oom_kills"}
    job |= {"wall_s", "cpu_s", "cpu_recorded_s"} if host["cpu_source"] == "cgroup" else set()
    job |= {"read_b", "write_b"} if host["io_source"] == "cgroup" else set()
    return host | {name: _times(host[name], share) for name in job}


def _gpus_once(parts: Sequence["Digest"]) -> list[tuple[float, float | None]]:
    """Seconds and joules of each GPU: what recordings side by side on a node all saw counts once."""
    seen: dict[tuple[str, str], list[tuple[tuple[float, float], dict[str, Any]]]] = {}
    for part in parts:
        for gpu in part.gpus:
            seen.setdefault((part.node, gpu["device"]), []).append((part.span_s, gpu))
    result = []
    for found in seen.values():
        recorded_s = sum(gpu["wall_s"] for _, gpu in found)
        length_s = min(recorded_s, covered_s([span for span, _ in found]))
        joules = total(gpu["energy_j"] for _, gpu in found)
        share = length_s / recorded_s if recorded_s else 0.0
        result.append((length_s, None if joules is None else joules * share))
    return result


def _hours(value_s: float | None) -> float | None:
    return None if value_s is None else value_s / 3600


def _kwh(value_j: float | None) -> float | None:
    return None if value_j is None else value_j / 3.6e6


def _by_time(values: Sequence[tuple[float | None, float]]) -> float | None:
    """The mean of what was measured, each as heavy as it is long."""
    known = [(value, wall_s) for value, wall_s in values if value is not None]
    return _ratio(sum(value * wall_s for value, wall_s in known), sum(wall_s for _, wall_s in known)) if known else None


def _coverage(hosts: Sequence[dict[str, Any]]) -> float:
    expected = sum(summary["samples_expected"] for summary in hosts) or 1.0
    return min(100.0, 100 * sum(summary["samples"] for summary in hosts) / expected)


def covered_s(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of time spans: what a clock on the wall would have shown of them."""
    length, until = 0.0, -np.inf
    for start, end in sorted(spans):
        length += max(0.0, end - max(start, until))
        until = max(until, end)
    return float(length)


def total(values: Iterable[float | None]) -> float | None:
    """The sum of what was measured; None when nothing was."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def largest(values: Iterable[float | None]) -> float | None:
    """The largest of what was measured; None when nothing was."""
    known = [value for value in values if value is not None]
    return max(known) if known else None


def _times(a: float | None, b: float) -> float | None:
    return None if a is None else a * b


def _gib(value: float | None) -> float | None:
    return None if value is None else value / 2**30


def _percent(part: float | None, whole: float) -> float | None:
    return None if part is None or whole <= 0 else 100 * part / whole


def nodes(parts: Sequence["Digest"], allotted_s: Mapping[str, float]) -> list[dict[str, Any]]:
    """The recordings of a run by node: what its processes got of the cores, and what they waited for.

    `allotted_s` are the seconds for which the run held each node: one that was never recorded has a row too.
    """
    rows = []
    for node in sorted({part.node for part in parts} | allotted_s.keys()):
        own = [part for part in parts if part.node == node]
        hosts = [part.host for part in own]
        wall_s = sum(host["wall_s"] for host in hosts)
        recorded_s = covered_s([part.span_s for part in own])
        of_s = max(allotted_s.get(node, 0.0), recorded_s)
        rows.append(
            {
                "node": node,
                "cores_mean": _ratio(total(host["cpu_recorded_s"] for host in hosts), wall_s),
                "cores_allowed": largest(host["cores_allowed"] for host in hosts),
                "run_delay_pct": _percent(total(host["run_delay_s"] for host in hosts), wall_s),
                "throttled_pct": _percent(total(host["throttled_s"] for host in hosts), wall_s),
                "mem_peak_gib": _gib(largest(host["mem_peak_b"] for host in hosts)),
                "net_rx_gib": _gib(total(host["net_rx_b"] for host in hosts)),
                "net_tx_gib": _gib(total(host["net_tx_b"] for host in hosts)),
                "coverage_pct": _coverage(hosts) * recorded_s / of_s if of_s else 0.0,
                "recorded_hours": recorded_s / 3600,
                "of_hours": of_s / 3600,
            }
        )
    return rows


def is_short(host: Mapping[str, Any]) -> bool:
    """Whether a node's recording leaves out more of the run than its last batch, which a live one has not written."""
    missing_s = 3600 * (host["of_hours"] - host["recorded_hours"])
    return missing_s > LAST_BATCH_S and 100 * host["recorded_hours"] < WHOLE_PCT * host["of_hours"]
