"""What a Slurm cluster says about itself on the login node: partitions, accounts, software, a look from a node."""

import getpass
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import NamedTuple

from brickreel.cluster import slurm

UNLIMITED_MIN = 365 * 24 * 60
LOOK_TIMEOUT_S = 90
BUSY = "no node became free in time: look again when the partition is less busy"
USABLE = ("idle", "mix", "alloc", "comp", "plnd", "resv")


class Kind(NamedTuple):
    """Nodes of a partition with the same GPUs."""

    gpu_type: str
    gpus: int
    """Per node."""
    nodes: int


class Partition(NamedTuple):
    """One partition; nodes that differ count by the smallest."""

    name: str
    default: bool
    up: bool
    max_minutes: int
    nodes: int
    usable: int
    """Nodes that are not down or drained."""
    cpus: int
    memory_mb: int
    kinds: tuple[Kind, ...]
    """Its nodes with GPUs, those with the most in all first: a partition may hold others too."""

    @property
    def richest(self) -> Kind:
        """The nodes with the most GPUs in all; none of none where there are no GPUs."""
        return self.kinds[0] if self.kinds else Kind("", 0, 0)

    def with_gpus(self, gres: str) -> tuple[Kind, ...]:
        """The nodes whose GPUs are of the type that this gres names; all with GPUs where it names none."""
        wanted, _ = gpus_of(gres)
        return tuple(kind for kind in self.kinds if wanted in ("", kind.gpu_type))


class Facts(NamedTuple):
    """All that was found out."""

    version: str
    partitions: tuple[Partition, ...]
    accounts: tuple[str, ...]
    account_needed: bool
    requeue: bool
    modules: tuple[str, ...]
    """Modules whose name says CUDA, where there are modules."""
    driver_cuda: str
    container: str
    """apptainer or singularity, if installed."""


class Look(NamedTuple):
    """What a job on a node of a partition saw."""

    partition: str
    node: str
    problem: str


def gather() -> Facts:
    """Ask Slurm and this machine. Raises ValueError when Slurm is not installed or does not answer."""
    version = slurm.ask("sinfo", "--version")
    settings = slurm.ask("scontrol", "show", "config")
    if settings.returncode:
        said = settings.stderr.strip().splitlines()
        raise ValueError(f"Slurm does not answer: {said[-1][:300] if said else 'no message'}")
    listed = slurm.ask("sinfo", "-h", "-e", "-o", "%P|%a|%l|%D|%c|%m|%G|%t").stdout
    user = getpass.getuser()
    accounts = slurm.ask("sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=Account").stdout.split()
    return Facts(
        version=version.stdout.strip(),
        partitions=partitions(listed),
        accounts=tuple(dict.fromkeys(accounts)),
        account_needed=bool(re.search(r"AccountingStorageEnforce\s*=.*associations", settings.stdout)),
        requeue=not re.search(r"^JobRequeue\s*=\s*0", settings.stdout, re.M),
        modules=cuda_modules(),
        driver_cuda=driver_cuda(),
        container=next((name for name in ("apptainer", "singularity") if shutil.which(name)), ""),
    )


def partitions(listed: str) -> tuple[Partition, ...]:
    """From lines of `sinfo -o "%P|%a|%l|%D|%c|%m|%G|%t"`, one per group of equal nodes."""
    found: dict[str, Partition] = {}
    for line in listed.splitlines():
        name, up, limit, count, cpus, memory, gres, state = line.strip().split("|")
        gpu_type, gpus = gpus_of(gres)
        nodes = int(count)
        here = Partition(
            name.rstrip("*"),
            name.endswith("*"),
            up == "up",
            minutes(limit),
            nodes,
            nodes if state.rstrip("*~#!%$@^-+").startswith(USABLE) and not state.endswith("*") else 0,
            int(cpus.rstrip("+")),
            int(memory.rstrip("+")),
            (Kind(gpu_type, gpus, nodes),) if gpus else (),
        )
        before = found.get(here.name)
        found[here.name] = here if before is None else _together(before, here)
    return tuple(found.values())


def _together(a: Partition, b: Partition) -> Partition:
    nodes: dict[tuple[str, int], int] = {}
    for gpu_type, gpus, count in (*a.kinds, *b.kinds):
        nodes[gpu_type, gpus] = nodes.get((gpu_type, gpus), 0) + count
    kinds = [Kind(gpu_type, gpus, count) for (gpu_type, gpus), count in nodes.items()]
    return a._replace(
        nodes=a.nodes + b.nodes,
        usable=a.usable + b.usable,
        cpus=min(a.cpus, b.cpus),
        memory_mb=min(a.memory_mb, b.memory_mb),
        kinds=tuple(sorted(kinds, key=lambda kind: -kind.gpus * kind.nodes)),
    )


def gpus_of(gres: str) -> tuple[str, int]:
    """Type and number in `gpu:h100:8(S:0-1)`; empty and 0 where there is none."""
    match = re.search(r"gpu:(?:([\w.-]+):)?(\d+)(?![\w.:-])", gres)
    return (match.group(1) or "", int(match.group(2))) if match else ("", 0)


def minutes(limit: str) -> int:
    """Slurm's `days-hours:minutes:seconds`, `minutes:seconds`, or `infinite`."""
    if limit in ("infinite", "n/a"):
        return UNLIMITED_MIN
    days, _, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    while len(parts) < 3:
        parts.insert(0, 0)
    return int(days or 0) * 1440 + parts[0] * 60 + parts[1]


def cuda_modules() -> tuple[str, ...]:
    """Names of environment modules with CUDA; modules are a shell function, so a login shell is asked."""
    done = _program("bash", "-lc", "type module >/dev/null 2>&1 && module -t avail cuda 2>&1")
    names = re.findall(r"^(\S*cuda\S*?)(?:\(default\))?$", done, re.M | re.I)
    return tuple(name for name in names if not name.endswith(":"))


def driver_cuda() -> str:
    """The CUDA version of this machine's driver; empty where there is none, as on most login nodes."""
    match = re.search(r"CUDA Version:\s*([\d.]+)", _program("nvidia-smi"))
    return match.group(1) if match else ""


def _program(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def look_from(partition: Partition, account: str, folder: Path) -> Look:
    """Run a job of seconds in a partition: does a node see this folder, and this Python?"""
    token = folder / f".brickreel-doctor-{uuid.uuid4().hex[:8]}"
    token.write_text("seen from the login node\n")
    script = 'cat "$1" >/dev/null || exit 3; "$2" -c "import brickreel" || exit 4; touch "$1.back" || exit 5; hostname'
    words = ["srun", f"--partition={partition.name}", "--nodes=1", "--ntasks=1", "--time=2", "--mem=500M"]
    words += [f"--account={account}"] if account else []
    # A queue for GPUs may refuse jobs that ask for none.
    kind = partition.richest
    words += [f"--gres=gpu:{kind.gpu_type}:1" if kind.gpu_type else "--gres=gpu:1"] if kind.gpus else []
    words += [f"--immediate={LOOK_TIMEOUT_S // 2}", f"--chdir={folder}", "sh", "-c", script, "-", str(token)]
    try:
        done = subprocess.run(
            [*words, sys.executable],
            capture_output=True,
            text=True,
            check=False,
            timeout=LOOK_TIMEOUT_S,
            env={name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SRUN_"))}
            | {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ},
        )
        back = Path(f"{token}.back")
        seen_back = back.exists()
        back.unlink(missing_ok=True)
    except subprocess.TimeoutExpired:
        return Look(partition.name, "", BUSY)
    finally:
        token.unlink(missing_ok=True)
    node = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    if done.returncode == 0 and seen_back:
        return Look(partition.name, node, "")
    return Look(partition.name, node, _explain(done, folder))


def _explain(done: "subprocess.CompletedProcess[str]", folder: Path) -> str:
    reasons = {
        3: f"a node does not see {folder}: put the project on a file system that all nodes share",
        4: f"a node cannot run {sys.executable} with brickreel: put the environment on a shared file system",
        5: f"a node cannot write to {folder}: is it mounted read-only there?",
    }
    status = done.returncode
    if status in reasons:
        return reasons[status]
    if re.search(r"Unable to allocate resources: .*(busy|timed out|Immediate execution)", done.stderr):
        return BUSY
    last = done.stderr.strip().splitlines()
    return slurm.explain_refusal(last[-1]) if last else f"the job ended with status {status}"
