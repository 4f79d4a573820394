"""Assembles `summary.json`: one tree of plain values with units in the key names, the page's only source of numbers."""

import itertools
import math
import platform
import time
from collections import defaultdict
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

from brickreel import __version__
from brickreel.stages import STAGES
from brickreel.telemetry import accounting, dataset, findings, forecast, heat, training, usage
from brickreel.telemetry.digest import Digest
from brickreel.telemetry.project import Gap, ProjectFiles, RunFiles

SCHEMA_VERSION = 1
TIMELINE_BARS = 300
MOST_NODES = 8
"""Nodes with a gap of their own."""
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "colossalai",
    "flash-attn",
    "snakemake",
    "submitit",
    "nvidia-ml-py",
    "av",
)
# How rows of several attempts become one; what is in neither is a mean.
SUMS = {"energy_j", "energy_s", "ecc_uncorrected", "pcie_replays", "nvlink_errors", "wall_s"}
SUMS |= {"link_downed", "symbol_errors", "link_recoveries", "xmit_wait"}
PEAKS = {"temp_max_c", "mem_peak_b", "mem_total_b", "remap_pending", "remap_failed"}
PEAKS |= {"line_rate_gb_s", "tx_peak_gb_s", "rx_peak_gb_s"}


def assemble(project: ProjectFiles, recorded: Sequence[Digest]) -> tuple[dict[str, Any], dict[str, heat.Maps]]:
    """The summary, and per run the heat maps, which are pictures and not numbers."""
    by_stage: dict[str, list[Digest]] = defaultdict(list)
    for recording in recorded:
        by_stage[recording.stage].append(recording)
    runs, maps = [], {}
    for run in project.runs:
        own = _own(run, [found for found in by_stage["train"] if found.part == run.name], project)
        summary, maps[run.name] = _run(run, own, project)
        runs.append(summary)
    stages = [usage.stage(stage.name, by_stage[stage.name]) for stage in STAGES if by_stage[stage.name]]
    _add_accounting(stages, recorded, project)
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "project": project.name,
        "generated_at_s": time.time(),
        "dataset": dataset.summarise(project),
        "runs": runs,
        "stages": stages,
        "timeline": _timeline(by_stage),
        "provenance": _provenance(recorded),
    }
    # What was not recorded is a gap of the report, and none of those who assemble without recordings.
    gaps = [*project.gaps, *itertools.chain.from_iterable(map(_node_gaps, runs)), *_measurement_gaps(by_stage)]
    result["gaps"] = [{"what": gap.what, "why": gap.why} for gap in gaps]
    result["findings"] = findings.find(result)
    return finite(result), maps


def _add_accounting(stages: list[dict[str, Any]], recorded: Sequence[Digest], project: ProjectFiles) -> None:
    """Put beside each stage what Slurm's accounting says of its jobs; None where it says nothing."""
    # A job that Snakemake submitted runs one stage; within a job that runs the whole graph, the first one is named.
    stage_of = {item.facts["job_id"]: item.stage for item in reversed(recorded) if item.facts.get("job_id")}
    said: list[tuple[str, str]] = []
    jobs = accounting.read(sorted(stage_of), said) if stage_of else {}
    project.gaps += [Gap(what, why) for what, why in said]
    found = accounting.by_stage(stage_of, jobs)
    for stage in stages:
        stage["slurm"] = found.get(stage["stage"])


def _own(run: RunFiles, recorded: Sequence[Digest], project: ProjectFiles) -> list[Digest]:
    """The recordings of this training; what else bears the run's name is told as a gap."""
    if not run.attempts:
        return list(recorded)
    own = [item for item in recorded if training.attempt_of(run, item.span_s) is not None]
    if count := len(recorded) - len(own):
        why = (
            "they belong to no attempt (a start that failed, a look at a finished run, an earlier training of that "
            "name) and count nowhere but in the stage's row"
        )
        project.gaps.append(Gap(f"{count} recordings of {run.name}", why))
    return own


def _run(run: RunFiles, own: Sequence[Digest], project: ProjectFiles) -> tuple[dict[str, Any], heat.Maps]:
    attempts = training.attempts_of(run, own)
    gpus = merged([gpu for item in own for gpu in item.gpus], "device")
    ports = merged([port | {"wall_s": item.host["wall_s"]} for item in own for port in item.ports], "port")
    summary = training.summarise(run, attempts, own, gpus, project.site)
    summary |= {
        "gpu_devices": gpus,
        "ports": [{name: value for name, value in port.items() if name != "wall_s"} for port in ports],
        "envelopes": heat.envelopes(own),
        "events": _events(own),
        "plan": {key: value for key, value in (run.plan or {}).items() if key != "buckets"} or None,
        "forecast": forecast.compare(run.plan, summary),
        "preflight": run.health,
        "scores": (run.scores or {}).get("metrics", []),
        "ceiling": (run.scores or {}).get("ceiling", []),
        "gauge_correlation": (run.scores or {}).get("gauge_correlation", []),
        "samples": _samples(run),
        "settings": run.settings,
        "dataset": {key: value for key, value in (run.dataset or {}).items() if not isinstance(value, list | dict)},
        "job": run.job,
        "hosts": usage.nodes(own, training.allotted_s(attempts)),
        "buckets": (run.plan or {}).get("per_bucket") or [],
        "left_out": _left_out(run),
    }
    project.gaps += _run_gaps(summary)
    return summary, heat.maps(own, attempts)


def _run_gaps(run: dict[str, Any]) -> list[Gap]:
    """What the backend could not tell, and a held-out loss without its relation to step 0."""
    gaps = []
    if run["time_pct"] and run["time_pct"]["comm_exposed"] is None:
        gaps.append(Gap(f"{run['run']}: exposed communication", "the backend cannot tell it; goodput includes it"))
    if run["slow_ranks_missing"] == training.NOT_TOLD:
        gaps.append(Gap(f"{run['run']}: slow ranks", "the backend cannot tell a rank's own work from waiting"))
    if any(series["relative"][-1] is None for series in run["gauge"]["series"]):
        why = "the last reading has other clips or timesteps than that of step 0, or there is none of step 0"
        gaps.append(Gap(f"{run['run']}: held-out loss relative to step 0", why))
    if others := run["gauge"]["other_steps"]:
        why = f"asked of other clips than the newest reading and not drawn, such as that of step {others[-1]}"
        gaps.append(Gap(f"{run['run']}: held-out loss of {len(others)} steps", why))
    return gaps


def _node_gaps(run: dict[str, Any]) -> list[Gap]:
    """Nodes that were not recorded all the time; one gap where none ever was."""
    if run["attempts"] and not any(host["recorded_hours"] for host in run["hosts"]):
        return [Gap(f"{run['run']}: telemetry", "none was recorded")]
    short = [host for host in run["hosts"] if usage.is_short(host)]
    gaps = [
        Gap(
            f"{run['run']}: node {host['node']}",
            f"recorded {host['recorded_hours']:.3g} of {host['of_hours']:.3g} hours: "
            "energy, means and sums leave the rest out",
        )
        for host in short[:MOST_NODES]
    ]
    if len(short) > MOST_NODES:
        gaps.append(Gap(f"{run['run']}: {len(short) - MOST_NODES} more nodes", "recorded for a part of the time only"))
    return gaps


def merged(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """GPUs or ports (their `name`: device or port) that several attempts recorded, each as one row.

    Means by time, sums of counters, highest peaks.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[(row["node"], row[name])].append(row)
    return [_merge(found) for _, found in sorted(groups.items())]


def _merge(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    result = dict(rows[0])
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in SUMS:
            result[name] = usage.total(values)
        elif name in PEAKS:
            result[name] = usage.largest(values)
        elif name == "line_rate_lowest_gb_s":
            result[name] = min((value for value in values if value is not None), default=None)
        elif name == "xids":
            result[name] = [xid for value in values for xid in value]
        elif name not in ("device", "port", "node", "name"):
            known = [(row[name], row["wall_s"]) for row in rows if row[name] is not None]
            weight = sum(wall for _, wall in known)
            result[name] = sum(value * wall for value, wall in known) / weight if weight else None
    return result


def _events(recorded: Sequence[Digest]) -> list[dict[str, Any]]:
    return [
        {
            "time_s": event.time_s,
            "node": recording.node,
            "device": event.device,
            "event": event.event,
            "detail": event.detail,
        }
        for recording in recorded
        for event in recording.events
        if event.event not in ("device", "measured", "not_measured")
    ]


def _samples(run: RunFiles) -> dict[str, Any]:
    ok = [row for row in run.samples if row["outcome"] == "ok"]
    return {
        "videos": len(ok),
        "failed": len(run.samples) - len(ok),
        "steps": sorted({row["step"] for row in run.samples}),
        "prompts": len({row["prompt_id"] for row in run.samples}),
        "seconds_per_video": float(np.mean([row["seconds"] for row in ok if row["seconds"] is not None] or [math.nan])),
    }


def _left_out(run: RunFiles) -> list[dict[str, Any]]:
    """Clips that no bucket of the run takes, by reason."""
    clips = (run.plan or {}).get("clips")
    dropped = clips.get("dropped") if isinstance(clips, dict) else None
    return (
        [{"reason": reason, "count": count} for reason, count in dropped.items()] if isinstance(dropped, dict) else []
    )


def _timeline(by_stage: dict[str, list[Digest]]) -> list[dict[str, Any]]:
    bars: list[dict[str, Any]] = [
        {
            "stage": recording.stage,
            "part": recording.part,
            "node": recording.node,
            "start_s": recording.span_s[0],
            "end_s": recording.span_s[1],
            "cores": _cores(recording.host),
        }
        for found in by_stage.values()
        for recording in found
    ]
    bars.sort(key=lambda bar: bar["start_s"] - bar["end_s"])
    return sorted(bars[:TIMELINE_BARS], key=lambda bar: bar["start_s"])


def _cores(host: dict[str, Any]) -> float | None:
    used_s, wall_s = host["cpu_recorded_s"], host["wall_s"]
    return used_s / wall_s if used_s is not None and wall_s > 0 else None


def _provenance(recorded: Sequence[Digest]) -> dict[str, Any]:
    versions = {"brickreel": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "nodes": [
            {"node": node, "kernel": kernel}
            for node, kernel in sorted({(r.node, r.facts.get("kernel", "")) for r in recorded})
        ],
        "slurm_jobs": sorted({r.facts["job_id"] for r in recorded if r.facts.get("job_id")}),
        "clock_step_s": max((item.clock_step_s for item in recorded), default=None),
    }


def _measurement_gaps(by_stage: dict[str, list[Digest]]) -> list[Gap]:
    """What the recorder itself said it could not measure, each thing once."""
    nodes: dict[tuple[str, str], set[str]] = defaultdict(set)
    for recording in (found for stage in by_stage.values() for found in stage):
        for event in recording.events:
            if event.event == "not_measured":
                nodes[(event.detail, event.device)].add(recording.node)
        if recording.stage == "train" and not recording.ports:
            nodes[("InfiniBand: the node has no such port", "")].add(recording.node)
        if not recording.has_cgroup:
            nodes[("cgroup v2: not offered here; CPU and memory are those of the stage's processes", "")].add(
                recording.node
            )
    return [
        Gap(f"{device or 'machine'} on {_names(where)}", detail) for (detail, device), where in sorted(nodes.items())
    ]


def _names(nodes: set[str]) -> str:
    names = sorted(nodes)
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def finite(value: Any) -> Any:
    """The same tree as plain JSON values: numbers that are not finite, which JSON has no word for, become null."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
