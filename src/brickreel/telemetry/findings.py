"""Automatic findings: a table of rules, each with its threshold, evidence, cost and the line to change.

A rule reads the summary and yields what it found. Every rule has a test that fires it and a clean run on which all of
them stay silent.
"""

import math
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, Literal, NamedTuple

from brickreel.telemetry import signs, usage
from brickreel.telemetry.signs import THROTTLE_WORDS, THROTTLED_PCT

Severity = Literal["error", "warning", "note"]
ORDER = {"error": 0, "warning": 1, "note": 2}

LEAST_COST_HOURS = 1 / 60
"""What cost less than a minute of one GPU or rank is not worth a sentence."""
LEAST_SHARE = 0.001
"""A slow rank or node that cost less of the run's time is not worth one either."""
MOST_SIGNS = 3
LEAST_STAGE_S = 60.0
"""CPU and memory requests of shorter stages are not judged."""


class Finding(NamedTuple):
    """One claim with its proof."""

    claim: str
    evidence: dict[str, Any]
    cost_hours: float | None
    do: str
    where: str
    """Anchor of the section that shows it."""
    severity: Severity | None = None
    """Overrules the rule's own."""
    cost_unit: str | None = None
    """GPU-hours, or rank-hours of a run without GPUs."""


class Rule(NamedTuple):
    """A named test of the summary."""

    name: str
    severity: Severity
    threshold: str
    check: Callable[[dict[str, Any]], Iterator[Finding]]


def find(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """All findings: errors before warnings before notes, and the costliest first among each."""
    found = []
    for rule in RULES:
        for finding in rule.check(summary):
            found.append(
                {
                    "rule": rule.name,
                    "severity": finding.severity or rule.severity,
                    "claim": finding.claim,
                    "evidence": finding.evidence,
                    "threshold": rule.threshold,
                    "cost_hours": finding.cost_hours,
                    "cost_unit": finding.cost_unit,
                    "do": finding.do,
                    "where": finding.where,
                }
            )
    return sorted(found, key=lambda item: (ORDER[item["severity"]], -(item["cost_hours"] or 0)))


def straggler(summary: dict[str, Any]) -> Iterator[Finding]:
    """Nodes and ranks whose own work takes longer than their peers'."""
    for run in summary["runs"]:
        worth_hours = LEAST_SHARE * (run["gpu_hours"] or run["rank_hours"] or 0.0)
        whole = {item["node"]: item for item in run["slow_nodes"]}
        for node, item in whole.items():
            if item["cost_hours"] >= worth_hours:
                who = f"{len(item['ranks'])} of the {item['of_ranks']} ranks of {node} are slow: their"
                yield _slow(run, who, item, {"ranks": item["ranks"], "of_ranks": item["of_ranks"]})
        for item in run["stragglers"]:
            if item["node"] not in whole and item["cost_hours"] >= worth_hours:
                place = f" ({item['node']}, process {item['local_index']} there)" if item["node"] else ""
                who = f"rank {item['rank']}{place} is slow: its"
                yield _slow(run, who, item, {key: item[key] for key in ("windows", "of_windows")})


def _slow(run: dict[str, Any], who: str, item: dict[str, Any], evidence: dict[str, Any]) -> Finding:
    found, nothing = signs.of_node(run, item["node"])
    more = [f"and {len(found) - MOST_SIGNS} signs more"] if len(found) > MOST_SIGNS else []
    cause = "; ".join([*found[:MOST_SIGNS], *more]) or nothing
    peers = "its peers'" if who.endswith("its") else "that of other nodes"
    exclude = f"   # or exclude the node: --exclude={item['node']}" if item["node"] else ""
    return Finding(
        f"{run['run']}: {who} own work takes {item['slower_pct']:.1f} % longer than {peers}. "
        f"{cause[0].upper()}{cause[1:]}.",
        {"slower_pct": item["slower_pct"], **evidence, "signs": found},
        item["cost_hours"],
        f"brickreel preflight --run {run['run']}{exclude}",
        f"ranks-{run['run']}",
        cost_unit=_cost_unit(run),
    )


def starved(summary: dict[str, Any]) -> Iterator[Finding]:
    """GPUs that wait for the data loader."""
    for run in summary["runs"]:
        share = run["data_wait_pct"]
        if share is None or share <= 2:
            continue
        cost = _cost(run, (run["time_pct"] or {}).get("data", 0.0))
        if cost >= LEAST_COST_HOURS:
            yield Finding(
                f"{run['run']}: the data loader keeps training waiting for {share:.1f} % of the time.",
                {"data_wait_pct": share},
                cost,
                "train: {loader_threads: <more>, prefetch: <more>}   # in config.yaml, or a faster disk",
                f"time-{run['run']}",
                cost_unit=_cost_unit(run),
            )


def cpu_over_request(summary: dict[str, Any]) -> Iterator[Finding]:
    """Cores that were asked for and never used, where others could have used them."""
    for stage in summary["stages"]:
        allowed, used, whole = stage["cores_allowed"], stage["cores_p99"], stage["node_cores"]
        if not (stage["in_slurm"] and allowed and used is not None and stage["elapsed_s"] >= LEAST_STAGE_S):
            continue
        # A job that has the node to itself frees nothing by asking for less.
        if whole and allowed < whole and used < 0.5 * allowed:
            # The cores are a node's, cpus_per_task is a rank's.
            tasks = stage["tasks_per_node"]
            need = max(1, math.ceil(round(used * 1.2 + 0.5) / tasks))
            if need * tasks >= allowed:
                continue
            yield Finding(
                f"{stage['stage']}: of {allowed:.0f} cores it used at most {used:.1f} for 99 % of the time.",
                {"cores_allowed": allowed, "cores_p99": used},
                None,
                _resource(stage, f"cpus_per_task: {need}"),
                "machines",
            )


def memory_over_request(summary: dict[str, Any]) -> Iterator[Finding]:
    """Memory that was asked for and not used, and memory that nearly ran out."""
    for stage in summary["stages"]:
        peak, limit = stage["mem_peak_gib"], stage["mem_limit_gib"]
        if stage["oom_kills"]:
            yield Finding(
                f"{stage['stage']}: {stage['oom_kills']:.0f} processes were killed because memory ran out.",
                {"oom_kills": stage["oom_kills"], "mem_limit_gib": limit},
                None,
                _resource(stage, f"mem_mb: {round(1536 * (limit or peak or 1))}"),
                "machines",
                "error",
            )
        elif stage["in_slurm"] and peak and limit and peak > 0.95 * limit:
            yield Finding(
                f"{stage['stage']}: memory came within 5 % of its limit.",
                {"mem_peak_gib": peak, "mem_limit_gib": limit},
                None,
                _resource(stage, f"mem_mb: {round(1.3 * 1024 * limit)}"),
                "machines",
            )


def busy_not_computing(summary: dict[str, Any]) -> Iterator[Finding]:
    """GPUs that look full and whose tensor cores idle."""
    for run in summary["runs"]:
        kernel, tensor = _mean_of(run, "kernel_time_pct"), _mean_of(run, "tensor_pct")
        idle = (tensor is not None and tensor < 20) or (
            tensor is None and run["mfu_pct"] is not None and run["mfu_pct"] < 20
        )
        if kernel is not None and kernel > 90 and idle:
            works = (
                f"tensor cores work {tensor:.1f} % of it" if tensor is not None else f"MFU is {run['mfu_pct']:.1f} %"
            )
            yield Finding(
                f"{run['run']}: GPUs look full, with a kernel for {kernel:.1f} % of the time, but {works}.",
                {"kernel_time_pct": kernel, "tensor_pct": tensor, "mfu_pct": run["mfu_pct"]},
                None,
                _buckets_line(run) + "; profile a few steps",
                f"gpus-{run['run']}",
            )


def throttled(summary: dict[str, Any]) -> Iterator[Finding]:
    """Clocks held down by heat, the power brake or the power cap."""
    for run in summary["runs"]:
        for gpu in run["gpu_devices"]:
            for cause, words in THROTTLE_WORDS.items():
                share = gpu[f"throttle_{cause}_pct"]
                if share is None or share <= THROTTLED_PCT.get(cause, 0.1):
                    continue
                yield Finding(
                    f"{run['run']}: {gpu['device']} of {gpu['node']} was {words} for {share:.1f} % of the time.",
                    {f"throttle_{cause}_pct": share, "temp_max_c": gpu["temp_max_c"], "power_w": gpu["power_w"]},
                    None,
                    "nothing: normal at full power"
                    if cause == "power"
                    else f"report the node to the site: {gpu['node']}",
                    f"gpus-{run['run']}",
                    "note" if cause == "power" else "error",
                )


def broken_gpu(summary: dict[str, Any]) -> Iterator[Finding]:
    """XIDs, uncorrected memory errors, row remappings that wait or failed."""
    for run in summary["runs"]:
        for gpu in run["gpu_devices"]:
            if broken := signs.faults(gpu):
                yield Finding(
                    f"{run['run']}: {gpu['device']} of {gpu['node']} is not healthy: {', '.join(broken)}.",
                    {key: gpu[key] for key in ("xids", "ecc_uncorrected", "remap_failed", "remap_pending")},
                    None,
                    f"--exclude={gpu['node']}   # and report it to the site",
                    f"gpus-{run['run']}",
                )


def memory_headroom(summary: dict[str, Any]) -> Iterator[Finding]:
    """GPU memory that larger micro-batches could use."""
    for run in summary["runs"]:
        shares = [
            gpu["mem_peak_b"] / gpu["mem_total_b"]
            for gpu in run["gpu_devices"]
            if gpu["mem_peak_b"] and gpu["mem_total_b"]
        ]
        if shares and run["steps_kept"] and max(shares) < 0.6:
            peak = max(shares)
            yield Finding(
                f"{run['run']}: at most {100 * peak:.0f} % of GPU memory was in use: "
                f"micro-batches could be about {0.9 / peak:.1f} times as large.",
                {"gpu_mem_peak_pct": 100 * peak},
                None,
                _buckets_line(run),
                f"gpus-{run['run']}",
            )


def _share_rule(cause: str, limit: float, claim: str, do: str) -> Callable[[dict[str, Any]], Iterator[Finding]]:
    def check(summary: dict[str, Any]) -> Iterator[Finding]:
        for run in summary["runs"]:
            share = (run["time_pct"] or {}).get(cause, 0.0)
            cost = _cost(run, share)
            if share > limit and cost >= LEAST_COST_HOURS:
                yield Finding(
                    f"{run['run']}: {claim.format(share)}",
                    {f"{cause}_pct": share},
                    cost,
                    do.format(run=run["run"]),
                    f"time-{run['run']}",
                    cost_unit=_cost_unit(run),
                )

    return check


def network(summary: dict[str, Any]) -> Iterator[Finding]:
    """InfiniBand links that went down, lost a part of their rate, or carry less than their peers."""
    for run in summary["runs"]:
        for port in run["ports"]:
            # The same port of every node: others of a node may be slower by design, for storage or management.
            peers = [other for other in run["ports"] if other["port"] == port["port"]]
            rates = [other["tx_gb_s"] for other in peers if other["tx_gb_s"] is not None]
            lines = [other["line_rate_gb_s"] for other in peers if other["line_rate_gb_s"] is not None]
            seen = [f"{port['link_downed']:.0f} times down"] if port["link_downed"] else []
            if port["line_rate_gb_s"] is not None and port["line_rate_gb_s"] < max(lines):
                seen.append(f"a line rate of {port['line_rate_gb_s']:.0f} Gb/s where others have {max(lines):.0f}")
            if port["line_rate_gb_s"] is not None and port["line_rate_lowest_gb_s"] < port["line_rate_gb_s"]:
                fell = f"{port['line_rate_lowest_gb_s']:.0f} of {port['line_rate_gb_s']:.0f} Gb/s"
                seen.append(f"its line rate changed during the run, down to {fell}")
            if port["tx_gb_s"] is not None and median(rates) > 1 and port["tx_gb_s"] < 0.5 * median(rates):
                seen.append(f"{port['tx_gb_s']:.1f} Gb/s sent where the median is {median(rates):.1f}")
            if seen:
                yield Finding(
                    f"{run['run']}: port {port['port']} of {port['node']}: {', '.join(seen)}.",
                    {key: port[key] for key in ("link_downed", "line_rate_gb_s", "line_rate_lowest_gb_s", "tx_gb_s")},
                    None,
                    f"--exclude={port['node']}   # and report the port to the site",
                    f"network-{run['run']}",
                )


def coverage(summary: dict[str, Any]) -> Iterator[Finding]:
    """Recordings with holes, and nodes without one: means and energy exclude what is missing.

    A run of which nothing was recorded is a gap and no finding: telemetry may be off.
    """
    for run in summary["runs"]:
        recorded = any(host["recorded_hours"] for host in run["hosts"])
        if short := [host for host in run["hosts"] if recorded and usage.is_short(host)]:
            hours = sum(host["of_hours"] - host["recorded_hours"] for host in short)
            names = [host["node"] for host in short[:4]] + (["others"] if len(short) > 4 else [])
            yield Finding(
                f"{run['run']}: {hours:.3g} node-hours were not recorded, of {', '.join(names)}: "
                "energy, means and sums leave them out.",
                {"node_hours_missing": hours, "nodes": [host["node"] for host in short]},
                None,
                f"look at logs/telemetry/train/{run['run']}: a recorder that failed left a file .err",
                f"hosts-{run['run']}",
            )
    for stage in summary["stages"]:
        if stage["coverage_pct"] < 98 and stage["elapsed_s"] >= LEAST_STAGE_S:
            yield Finding(
                f"{stage['stage']}: {100 - stage['coverage_pct']:.1f} % of the samples are missing; "
                "means leave them out.",
                {"coverage_pct": stage["coverage_pct"]},
                None,
                "telemetry: {period_s: 2}   # in config.yaml, where the node was too busy for the recorder",
                "machines",
            )


def preflight(summary: dict[str, Any]) -> Iterator[Finding]:
    """A run whose nodes did not pass their check."""
    for run in summary["runs"]:
        health = run["preflight"] or {}
        failed = [
            check for check in health.get("checks", []) if isinstance(check, dict) and check.get("result") == "fail"
        ]
        if failed:
            first = failed[0]
            more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
            place = "" if first.get("node") == "all" else f" on {first.get('node')}"
            exclude = ",".join(health.get("exclude") or [])
            yield Finding(
                f"{run['run']}: preflight failed: {first.get('name')}{place}{more}.",
                {"failed": len(failed), "exclude": health.get("exclude")},
                None,
                f"--exclude={exclude}"
                if exclude
                else f"brickreel preflight --run {run['run']}   # no node is to blame",
                f"preflight-{run['run']}",
            )


def _resource(stage: dict[str, Any], setting: str) -> str:
    """The line of the Snakemake profile that changes what the stage asks for."""
    return f"set-resources: {{{stage['stage']}: {{{setting}}}}}   # in slurm/config.yaml"


def _buckets_line(run: dict[str, Any]) -> str:
    return f"runs: {{{run['run']}: {{data: {{buckets: <more clips per micro-batch>}}}}}}   # in config.yaml"


def _mean_of(run: dict[str, Any], name: str) -> float | None:
    known = [gpu[name] for gpu in run["gpu_devices"] if gpu[name] is not None]
    return sum(known) / len(known) if known else None


def _cost_unit(run: dict[str, Any]) -> str:
    return "GPU-hours" if run["gpu_hours"] is not None else "rank-hours"


def _cost(run: dict[str, Any], share_pct: float) -> float:
    """GPU-hours (rank-hours, where there is no GPU) behind a share of the run's time."""
    return share_pct / 100 * (run["gpu_hours"] or run["rank_hours"] or 0.0)


RULES = (
    Rule(
        "straggler",
        "warning",
        "own work > 2 % over the peers' (or > 10 % in one step of ten) and z > 5, in 2 or more windows of 100 steps, "
        "at a cost > 0.1 % of the time; a node is one finding where most of its ranks are slow",
        straggler,
    ),
    Rule("starved", "warning", "data wait > 2 % of step time", starved),
    Rule("broken gpu", "error", "any XID, uncorrected error, pending or failed remapping", broken_gpu),
    Rule("throttled", "error", "heat or power brake > 0.1 % of the time; power cap > 50 % (a note)", throttled),
    Rule(
        "network",
        "error",
        "any link down, a line rate that fell or is below others', traffic below half the median",
        network,
    ),
    Rule("preflight", "warning", "any failed check", preflight),
    Rule(
        "busy, not computing",
        "warning",
        "time with a kernel > 90 % while tensor cores < 20 % or MFU < 20 %",
        busy_not_computing,
    ),
    Rule(
        "checkpoint",
        "warning",
        "writing checkpoints > 3 % of the allocated time",
        _share_rule(
            "checkpoint",
            3,
            "writing checkpoints took {:.1f} % of the time.",
            "runs: {{{run}: {{checkpoint_every: <more steps>}}}}   # in config.yaml",
        ),
    ),
    Rule(
        "redone",
        "warning",
        "steps computed again or lost > 5 % of the allocated time",
        _share_rule(
            "redone",
            5,
            "{:.1f} % of the time went into steps that no checkpoint kept: computed again, or lost.",
            "runs: {{{run}: {{checkpoint_every: <fewer steps>}}}}   # in config.yaml",
        ),
    ),
    Rule(
        "skipped",
        "warning",
        "steps skipped > 1 % of the allocated time",
        _share_rule(
            "skipped",
            1,
            "{:.1f} % of the time went into steps that were skipped: not finite, or no sample readable; "
            "the training log says which.",
            "runs: {{{run}: {{schedule: {{lr: <less>}}}}}}   # in config.yaml; a run of another name with "
            "precision: fp32 tells whether bf16 is to blame",
        ),
    ),
    Rule(
        "start-up",
        "note",
        "from start to first step > 10 % of the allocated time",
        _share_rule(
            "init",
            10,
            "starting up took {:.1f} % of the time.",
            "longer time limits in slurm/config.yaml: each attempt starts up anew",
        ),
    ),
    Rule(
        "unexplained",
        "note",
        "time that no record explains > 5 %",
        _share_rule(
            "unknown",
            5,
            "{:.1f} % of the time is explained by no record.",
            "look at logs/train/{run} around the gaps between steps",
        ),
    ),
    Rule("memory headroom", "note", "peak GPU memory < 60 %", memory_headroom),
    Rule("memory", "warning", "any process killed for memory; peak > 95 % of the limit", memory_over_request),
    Rule(
        "CPU over-request",
        "note",
        "99th percentile of cores < 50 % of those asked for, on a shared node",
        cpu_over_request,
    ),
    Rule(
        "coverage",
        "note",
        "samples received < 98 % of those expected, or a node recorded for < 98 % of the run",
        coverage,
    ),
)
