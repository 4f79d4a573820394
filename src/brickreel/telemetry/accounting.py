"""What Slurm's accounting says of the jobs that were recorded: requested against used, by stage."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brickreel.cluster import slurm

FIELDS = ("JobIDRaw", "State", "ElapsedRaw", "TotalCPU", "AllocCPUS", "NNodes", "ReqMem", "MaxRSS", "AllocTRES")
KIB = {"": 1 / 1024, "K": 1, "M": 1024, "G": 1024**2, "T": 1024**3}
MOST_IDS = 200
"""Job ids per question: a command line is not endless."""


@dataclass
class Job:
    """One job, requeues included. What accounting does not say is None."""

    job_id: str
    state: str
    elapsed_s: float = 0.0
    cpu_s: float = 0.0
    core_s: float = 0.0
    """Allocated cores times seconds."""
    gpu_s: float = 0.0
    """Allocated GPUs times seconds, starting up and idle tails included."""
    mem_requested_gib: float | None = None
    """On one node."""
    mem_peak_gib: float | None = None
    """Of the largest task on any node."""


def read(job_ids: Sequence[str], gaps: list[tuple[str, str]]) -> dict[str, Job]:
    """Job id -> job, as `sacct` knows them. Without accounting there are none, and `gaps` says why."""
    found: dict[str, Job] = {}
    for start in range(0, len(job_ids), MOST_IDS):
        ids = ",".join(job_ids[start : start + MOST_IDS])
        try:
            answer = slurm.ask("sacct", "-n", "-P", "--duplicates", "-j", ids, "-o", ",".join(FIELDS))
        except ValueError as error:
            gaps.append(("Slurm accounting", str(error)))
            return found
        if answer.returncode:
            gaps.append(("Slurm accounting", (answer.stderr.strip() or "sacct failed").splitlines()[0]))
            return found
        found |= parse(answer.stdout)
    if missing := sorted(set(job_ids) - set(found)):
        gaps.append(("Slurm accounting", f"{len(missing)} jobs are not in it, such as {missing[0]}"))
    return found


def parse(text: str) -> dict[str, Job]:
    """`sacct -n -P` rows of FIELDS -> jobs. Memory stands on the rows of steps, everything else on the job's own."""
    jobs: dict[str, Job] = {}
    for line in text.splitlines():
        row = dict(zip(FIELDS, line.split("|"), strict=False))
        if len(row) < len(FIELDS):
            continue
        # Raw: what a job of an array is told itself, and not the array's number with its place.
        job_id, _, step = row["JobIDRaw"].partition(".")
        if step:
            peak = gib(row["MaxRSS"])
            if peak is not None and job_id in jobs:
                jobs[job_id].mem_peak_gib = max(peak, jobs[job_id].mem_peak_gib or 0.0)
        else:
            _add(jobs, job_id, row)
    return jobs


def _add(jobs: dict[str, Job], job_id: str, row: Mapping[str, str]) -> None:
    """A job's own row; a requeued job has one for each time that it ran."""
    job = jobs.setdefault(job_id, Job(job_id, row["State"]))
    job.state = row["State"].split()[0] if row["State"] else job.state
    elapsed = float(row["ElapsedRaw"] or 0)
    job.elapsed_s += elapsed
    job.cpu_s += seconds(row["TotalCPU"])
    job.core_s += elapsed * float(row["AllocCPUS"] or 0)
    job.gpu_s += elapsed * gpus(row["AllocTRES"])
    requested = gib(row["ReqMem"])
    if requested is not None:
        # Since Slurm 21.08 ReqMem is the whole job's; before, `n` and `c` said whether it was by node or core.
        nodes, cores = max(int(row["NNodes"] or 1), 1), float(row["AllocCPUS"] or 1)
        per_node = {"n": 1.0, "c": cores / nodes}.get(row["ReqMem"][-1:], 1 / nodes)
        job.mem_requested_gib = requested * per_node


def seconds(text: str) -> float:
    """`[days-][hours:]minutes:seconds` as seconds."""
    days, dash, rest = text.rpartition("-")
    total = 0.0
    for part in rest.split(":") if rest else []:
        total = 60 * total + float(part)
    return total + (86400 * int(days) if dash else 0)


def gib(text: str) -> float | None:
    """`4000M`, `12.5G`, `1024K`, with the `n` or `c` of older versions; None when empty or nought."""
    matched = re.fullmatch(r"([\d.]+)([KMGT]?)[nc]?", text.strip())
    value = float(matched[1]) * KIB[matched[2]] / 1024**2 if matched else 0.0
    return value or None


def gpus(tres: str) -> int:
    """GPUs of `cpu=8,gres/gpu=4,gres/gpu:h100=4`: the untyped count, or the sum of the typed ones."""
    counts = re.findall(r"gres/gpu(:[^=,]+)?=(\d+)", tres)
    untyped = [int(count) for kind, count in counts if not kind]
    return untyped[0] if untyped else sum(int(count) for _, count in counts)


def by_stage(stage_of: Mapping[str, str], jobs: Mapping[str, Job]) -> dict[str, dict[str, Any]]:
    """Stage -> its jobs added up; `stage_of` gives each job's stage."""
    groups: dict[str, list[Job]] = defaultdict(list)
    for job_id, stage in stage_of.items():
        if job_id in jobs:
            groups[stage].append(jobs[job_id])
    return {stage: _stage(members) for stage, members in groups.items()}


def _stage(jobs: Sequence[Job]) -> dict[str, Any]:
    cores, used = sum(job.core_s for job in jobs), sum(job.cpu_s for job in jobs)
    return {
        "jobs": len(jobs),
        "states": sorted({job.state for job in jobs}),
        "job_hours": sum(job.elapsed_s for job in jobs) / 3600,
        "core_hours_allocated": cores / 3600,
        "cpu_core_hours": used / 3600,
        "cpu_use_pct": 100 * used / cores if cores else None,
        "mem_requested_gib": _largest(job.mem_requested_gib for job in jobs),
        "mem_peak_gib": _largest(job.mem_peak_gib for job in jobs),
        "gpu_hours_allocated": sum(job.gpu_s for job in jobs) / 3600,
    }


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
