"""What the system allows a process of this node: locked memory, open files, shared memory, memory of the job."""

import resource
import shutil
from pathlib import Path

from brickreel.cluster.checks import Check, at_least

OPEN_FILES, OPEN_FILES_INFINIBAND = 4096, 65536
"""Data loaders of eight ranks open thousands; NCCL over InfiniBand opens one per queue pair besides."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the place itself is what is looked at
MIN_LOCKED_GIB = 4.0
"""InfiniBand registers its buffers as locked memory; a cluster that uses it sets `unlimited`."""


def check(
    node: str, ranks_here: int, shm_per_rank_gib: float, infiniband: bool, shm: Path = SHARED_MEMORY
) -> list[Check]:
    """The limits of this process, which its children inherit."""
    return [
        _open_files(node, infiniband),
        _locked(node, infiniband),
        _shared_memory(node, ranks_here * shm_per_rank_gib, shm),
    ]


def _open_files(node: str, infiniband: bool) -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = float("inf") if hard == resource.RLIM_INFINITY else float(hard)
    value = min(count, 2.0**40)  # JSON has no infinity
    need = OPEN_FILES_INFINIBAND if infiniband else OPEN_FILES
    return at_least(
        "open files", node, value, "files", need, need / 4, "raise the limit of open files (ulimit -Hn) on this node"
    )


def _locked(node: str, infiniband: bool) -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Check("locked memory", node, "pass", "unlimited")
    gib = soft / 2**30
    if not infiniband:
        return Check("locked memory", node, "pass", gib, "GiB", "only InfiniBand needs it")
    return at_least(
        "locked memory",
        node,
        gib,
        "GiB",
        2.0**40,
        MIN_LOCKED_GIB,
        "InfiniBand needs `ulimit -l unlimited` in Slurm's daemons",
    )


def _shared_memory(node: str, need_gib: float, shm: Path) -> Check:
    if not shm.is_dir():
        return Check("shared memory", node, "not measured", reason=f"there is no {shm} on this node")
    free = shutil.disk_usage(shm).free / 2**30
    return at_least(
        "shared memory",
        node,
        free,
        "GiB",
        need_gib,
        need_gib / 2,
        f"{shm} has {free:.2g} GiB free and the ranks' data loaders need {need_gib:.2g}: enlarge or empty it",
    )
