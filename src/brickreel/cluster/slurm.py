"""What Slurm says about a job: asked with its own client programs, answered as small records and sentences."""

import getpass
import logging
import os
import re
import shutil
import subprocess
from typing import NamedTuple

logger = logging.getLogger("brickreel")

ANSWER_TIMEOUT_S = 60


class Queued(NamedTuple):
    """A job that the controller still works on."""

    state: str
    reason: str
    nodes: str


class Ended(NamedTuple):
    """How a job ended."""

    state: str
    exit_code: str


# Reasons for which a job waits without end: squeue's word -> what to do. Source: Slurm's "Job Reason Codes".
NEVER = {
    "PartitionTimeLimit": "the time limit is longer than the partition allows: lower `runtime` in slurm/config.yaml",
    "AccountNotAllowed": "the account may not use this partition: choose another `slurm_account`",
    "QOSNotAllowed": "the QOS may not be used in this partition: choose another in `slurm_extra`",
    "InvalidAccount": "the account does not exist or is not yours: choose another `slurm_account`",
    "InvalidQOS": "the QOS does not exist or is not yours",
    "AssocMaxWallDurationPerJobLimit": "the time limit is longer than the account allows: lower `runtime`",
    "QOSMaxWallDurationPerJobLimit": "the time limit is longer than the QOS allows: lower `runtime`",
    "AssocMaxNodePerJobLimit": "more nodes than the account allows in one job: lower `nodes`",
    "QOSMaxNodePerJobLimit": "more nodes than the QOS allows in one job: lower `nodes`",
    "QOSMaxGRESPerJob": "more GPUs than the QOS allows in one job: lower `nodes` or `gres`",
    "AssocMaxGRESPerJob": "more GPUs than the account allows in one job: lower `nodes` or `gres`",
    "QOSMaxMemoryPerJob": "more memory than the QOS allows: lower `mem_mb`",
    "QOSMaxCpuPerJobLimit": "more CPUs than the QOS allows in one job",
    "DependencyNeverSatisfied": "it waits for a job that failed",
}

# Reasons that Slurm gives for what a partition can never do, and for what it cannot do while nodes are down.
WHILE_DOWN = {
    "PartitionNodeLimit": "more nodes than the partition allows, or than are up now: lower `nodes` or choose another"
    " partition",
    "PartitionConfig": "more nodes, tasks or GPUs than the partition has, or than are up now: lower `nodes` or `gres`",
    "BadConstraints": "no node has what was asked for, or none that is up now: check `gres`, `constraint` and `mem_mb`",
}

# Reasons for which a job waits until somebody releases it, as after a maintenance.
HELD = {
    "JobHeldAdmin": "an administrator holds it and will release it, or can be asked to",
    "JobHeldUser": "it is held: `scontrol release {0}` lets it go on",
    "launch failed requeued held": "its nodes could not start it and Slurm holds it: `scontrol show job {0}` tells"
    " more, `scontrol release {0}` lets it try again",
    "job requeued in held state": "Slurm holds it after a requeue: `scontrol release {0}` lets it go on",
}

OUT_OF_ORDER = ("down", "drain", "drng", "fail", "inval", "maint", "unk")
"""Beginnings of the states, in sinfo's short words, of nodes that take no job."""

# What sbatch says when it refuses -> what to do.
REFUSALS = (
    (r"invalid partition specified: *(\S+)", "there is no partition '{0}': choose one that `sinfo -s` lists"),
    (r"Invalid account or account/partition", "the account does not exist or may not use this partition"),
    (r"Requested node configuration is not available", "no node of the partition has that many GPUs, CPUs or memory"),
    (r"More processors requested than permitted", "the partition's nodes have fewer CPUs than asked for"),
    (r"Requested time limit is invalid", "the time limit is not valid, or longer than the partition allows"),
    (r"Node count specification invalid", "the partition has fewer nodes than asked for"),
    (r"Invalid (generic resource|Trackable RESource)", "there is no such `gres`: `sinfo -o '%P %G'` lists them"),
    (r"Invalid qos specification", "the QOS does not exist or is not yours"),
    (r"Invalid feature specification", "no node has the feature that `--constraint` asks for"),
    (r"Memory specification can not be satisfied", "no node of the partition has that much memory: lower `mem_mb`"),
    (r"Unable to contact slurm controller", "the Slurm controller does not answer: try again later"),
)

ENDS = {
    "TIMEOUT": "reached its time limit, and may not be put back again: raise `runtime`",
    "OUT_OF_MEMORY": "needed more memory than it asked for: raise `mem_mb` or lower clips per micro-batch",
    "NODE_FAIL": "lost a node and was not requeued",
    "BOOT_FAIL": "was given a node that did not start",
    "DEADLINE": "missed its deadline",
    "PREEMPTED": "was preempted and not requeued",
    "FAILED": "failed",
}


def available() -> bool:
    """Whether Slurm's client programs are installed."""
    return all(shutil.which(name) for name in ("sbatch", "squeue", "scancel", "scontrol"))


def ask(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a client program; a controller that never answers looks like one that refused."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=ANSWER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "", f"{words[0]} did not answer in {ANSWER_TIMEOUT_S} s")
    except FileNotFoundError:
        raise ValueError(
            f"there is no program '{words[0]}': Slurm is not installed here. Without it: `snakemake --cores N`, or"
            " `brickreel launch --executor local`"
        ) from None


def queued(job_id: str) -> Queued | None:
    """The job in the queue; None when it is not there.

    Raises ConnectionError when the controller does not answer, which says nothing about the job.
    """
    answer = ask("squeue", "-h", "-j", job_id, "-o", "%T|%r|%N")
    if answer.returncode and "Invalid job id" not in answer.stderr:
        raise ConnectionError(answer.stderr.strip() or "squeue failed")
    lines = _rows(answer)
    return Queued(*lines[0].split("|", 2)) if lines else None


def _rows(answer: subprocess.CompletedProcess[str]) -> list[str]:
    """What a program listed. Where SLURM_CLUSTERS is set, the name of the cluster stands above it."""
    return [line for line in answer.stdout.splitlines() if line.strip() and not line.startswith("CLUSTER: ")]


def ended(job_id: str) -> Ended | None:
    """How a job ended; None while nobody knows. The controller is asked first: it answers without accounting."""
    answer = ask("scontrol", "-o", "show", "job", job_id)
    fields = dict(re.findall(r"(\w+)=(\S+)", answer.stdout)) if answer.returncode == 0 else {}
    if fields.get("EndTime", "Unknown") != "Unknown" and _is_final(fields.get("JobState", "")):
        return Ended(fields["JobState"], fields.get("ExitCode", ""))
    # Alone among Slurm's programs sacct does not read the variable.
    where = ["-M", os.environ["SLURM_CLUSTERS"]] if os.environ.get("SLURM_CLUSTERS") else []
    answer = ask("sacct", *where, "-X", "-n", "-P", "-j", job_id, "-o", "State,ExitCode,End")
    for line in answer.stdout.splitlines():
        state, exit_code, end = line.split("|")
        if end != "Unknown" and _is_final(state.split()[0]):
            return Ended(state.split()[0], exit_code)
    return None


def _is_final(state: str) -> bool:
    return state in ENDS or state in ("COMPLETED", "CANCELLED")


def user_jobs(name: str) -> list[tuple[str, str]]:
    """This user's jobs in the queue with this name: their ids and the folders they were submitted from.

    Raises ConnectionError when the controller does not answer: that is not an empty queue.
    """
    answer = ask("squeue", "-h", "-u", getpass.getuser(), "-n", name, "-o", "%i|%Z")
    if answer.returncode:
        raise ConnectionError(answer.stderr.strip() or "squeue failed")
    return [(job_id, folder) for job_id, _, folder in (line.partition("|") for line in _rows(answer))]


def cancel(job_id: str) -> bool:
    """Cancel a job; False when Slurm would not."""
    return ask("scancel", job_id).returncode == 0


def requeue(job_id: str) -> bool:
    """Put a running job back into the queue; False when Slurm would not."""
    return ask("scontrol", "requeue", job_id).returncode == 0


def restarts(job_id: str) -> int | None:
    """How often a job was put back so far, by whomever; None when Slurm does not say."""
    answer = ask("scontrol", "-o", "show", "job", job_id)
    found = re.search(r"\bRestarts=(\d+)", answer.stdout) if answer.returncode == 0 else None
    return int(found[1]) if found else None


def node_count(job_id: str) -> int | None:
    """How many nodes a running job has; None when Slurm does not say."""
    found = "".join(_rows(ask("squeue", "-h", "-j", job_id, "-o", "%D"))).strip()
    return int(found) if found.isdecimal() else None


def out_of_order(nodes: str) -> list[str]:
    """Those of a node list (`gpu[1-2]`) that take no job now; empty when Slurm does not say."""
    listed = [line.split() for line in _rows(ask("sinfo", "-h", "-a", "-N", "-n", nodes, "-o", "%N %t"))]
    return sorted({name for name, state in listed if _takes_no_job(state)})


def nodes_in_order(partition: str, gpu_type: str = "", gpus: int = 0) -> set[str] | None:
    """Nodes of a partition that can take jobs, busy ones too, reserved ones not; None when Slurm does not say.

    Of the default partition where none is named. With `gpus`, those that have any of that type.
    """
    where = ["-p", partition] if partition else []
    listed = [line.split() for line in _rows(ask("sinfo", "-h", "-a", "-N", *where, "-o", "%N %t %G %P"))]
    kind = f"gpu:{gpu_type}:" if gpu_type else "gpu" if gpus else ""
    found = {
        name
        for name, state, gres, of in listed
        if kind in gres and (partition or of.endswith("*")) and not (_takes_no_job(state) or state.startswith("resv"))
    }
    return found or None


def names(nodes: str) -> set[str]:
    """The nodes of a list such as gpu[1-4]."""
    return set(ask("scontrol", "show", "hostnames", nodes).stdout.split()) if nodes else set()


def _takes_no_job(state: str) -> bool:
    return state.startswith(OUT_OF_ORDER) or state.endswith("*")  # * means that the node does not answer


def allow_fewer_nodes(job_id: str, fewest: int, most: int, tasks_per_node: int, cpus_per_task: int) -> bool:
    """Let a waiting job start on fewer nodes than it lost; False when Slurm would not.

    Slurm holds on to the numbers of tasks and CPUs that the job had, and with them to the number of nodes: they must be
    lowered first, each by an update of its own.
    """
    tasks = fewest * tasks_per_node
    changes = (f"NumTasks={tasks}", f"NumCPUs={tasks * cpus_per_task}", f"NumNodes={fewest}-{most}")
    answers = [ask("scontrol", "update", f"jobid={job_id}", change) for change in changes]
    if answers[-1].returncode:
        logger.warning("Slurm job %s may not go on with fewer nodes: %s", job_id, answers[-1].stderr.strip())
    return answers[-1].returncode == 0


def never_starts(job: Queued) -> str | None:
    """Why a pending job will never start; None while it may."""
    return _advice(job, NEVER)


def starts_when_nodes_return(job: Queued) -> str | None:
    """Why a pending job will never start, unless nodes are down that come back; None where it only waits."""
    return _advice(job, WHILE_DOWN)


def explain_wait(job_id: str, job: Queued) -> str | None:
    """What somebody can do about a job's waiting; None where it only waits its turn."""
    advice = _advice(job, HELD | WHILE_DOWN)
    return advice.format(job_id) if advice else None


def _advice(job: Queued, reasons: dict[str, str]) -> str | None:
    waits = job.state == "PENDING"
    return next((advice for word, advice in reasons.items() if waits and word in job.reason), None)


def explain_refusal(message: str) -> str:
    """A sentence for what sbatch said when it refused a job."""
    for pattern, advice in REFUSALS:
        found = re.search(pattern, message)
        if found:
            return advice.format(*found.groups())
    lines = [line.removeprefix("sbatch: error: ") for line in message.strip().splitlines()]
    return lines[-1] if lines else "sbatch said nothing"


def explain_end(job_id: str, end: Ended) -> str:
    """A sentence for how a job ended."""
    if end.state == "CANCELLED":
        return f"Slurm job {job_id} was cancelled"
    return f"Slurm job {job_id} {ENDS.get(end.state, end.state)} (exit code {end.exit_code})"
