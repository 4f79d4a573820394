"""Start and stop torch.distributed, whoever started the processes: torchrun, srun, submitit or nobody.

`start` is the first and `stop` the last thing a stage of many ranks does; with a single process both do nothing.
"""

import os
import re
import resource
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from brickreel.cluster import exits, flight, network
from brickreel.cluster.ranks import Ranks, discover

# Below Linux's ephemeral range (from 32768), so that no outgoing connection of the node holds the port by chance.
FIRST_PORT, LAST_PORT = 20000, 32000
START_TIMEOUT_S = 300.0
MOST_FILES = 65_536
"""Enough for some groups of ten thousand ranks."""


def start(timeout_s: float = START_TIMEOUT_S, patience_s: float | None = None, evidence: Path | None = None) -> Ranks:
    """Join the process group of this job and return this process's place in it.

    nccl for CUDA tensors where there is a GPU (the device is chosen by local rank), gloo for the rest. A collective
    that nobody answers within `timeout_s` seconds ends the process; where `patience_s` is given, it takes the place of
    `timeout_s` once all have met, in groups that are made later too. `evidence` is the folder for what nccl knows when
    it ends the process. Raises ValueError when the environment's ranks are contradictory, ConnectionError
    when the ranks do not find each other.
    """
    ranks = discover()
    if ranks.world_size == 1:
        return ranks
    import torch
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    if dist.is_initialized():
        return ranks
    export(ranks)
    _allow_open_files()
    flight.listen(ranks.rank, evidence)
    network.refuse_dead_end(os.environ["MASTER_ADDR"])
    cuda = torch.cuda.is_available()
    if cuda:
        # With --gpus-per-task each rank sees one GPU, numbered 0.
        torch.cuda.set_device(ranks.local_rank % torch.cuda.device_count())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s))
        dist.barrier()
        if patience_s is not None:
            patience = timedelta(seconds=patience_s)
            distributed_c10d._set_pg_timeout(patience)
            # What new groups take: those of backends and checkpoints name none.
            distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = patience
    except (dist.DistError, RuntimeError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConnectionError(
            f"rank {ranks.rank} of {ranks.world_size} on {ranks.node} did not find the others at {where}: {first_line}"
        ) from error
    if cuda:
        from brickreel.cluster import affinity

        affinity.bind(ranks, torch.cuda.current_device())
    return ranks


def barrier() -> None:
    """Wait for all ranks; with a single process there is nobody to wait for."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def first_alone(action: Callable[[], None], ranks: Ranks, patience_s: float) -> None:
    """Rank 0 acts while the others wait for it, longer than `start` lets them wait in a collective.

    They are told at once when it fails: its connections end with it.
    """
    group = None
    if ranks.world_size > 1:
        import torch.distributed as dist

        # Made while all are here: a group cannot be joined late.
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=patience_s))
    if ranks.rank == 0:
        action()
    if group is not None:
        dist.barrier(group=group)


def stop() -> None:
    """Leave the process group, if there is one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized() and not exits.STUCK.is_set():
        words.cache_clear()
        dist.destroy_process_group()


def _allow_open_files() -> None:
    """As many as the node allows this process: every group has a connection to each rank."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # Some containers inherit a hard limit that their kernel does not let them set again.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@cache
def words() -> Any:
    """The group in which ranks tell each other things: the collectives of a model, in another one, may be stuck.

    All ranks call this together for the first time.
    """
    import torch.distributed as dist

    return dist.new_group(backend="gloo")


def export(ranks: Ranks) -> None:
    """Put the ranks and the meeting point into the environment under torchrun's names, for torch and ColossalAI.

    torchrun and the launcher's local processes come with a meeting point; under Slurm it is the first node of the
    step and a port that every rank computes for itself.
    """
    os.environ.update(
        RANK=str(ranks.rank),
        WORLD_SIZE=str(ranks.world_size),
        LOCAL_RANK=str(ranks.local_rank),
        LOCAL_WORLD_SIZE=str(ranks.local_world_size),
    )
    if ranks.source == "slurm":
        os.environ.update(MASTER_ADDR=first_host(_step_nodes(os.environ)), MASTER_PORT=str(port(os.environ)))
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ValueError(f"{ranks.source} started {ranks.world_size} ranks but {name} is not set")


def port(environment: Mapping[str, str]) -> int:
    """The meeting port of a Slurm step: another one for every step and every requeue of a job.

    A fresh port keeps stragglers of the attempt before, which may still be connecting, out of this one.
    """
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    key = ".".join(environment.get(name, "0") for name in names)
    return FIRST_PORT + zlib.crc32(key.encode()) % (LAST_PORT - FIRST_PORT)


def _step_nodes(environment: Mapping[str, str]) -> str:
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        if environment.get(name):
            return environment[name]
    raise ValueError("Slurm set ranks but neither SLURM_STEP_NODELIST nor SLURM_JOB_NODELIST")


def first_host(node_list: str) -> str:
    """The first host of a Slurm node list: `gpu1` of `gpu[1-2,5],cpu3`, `r01n07` of `r[01-03]n[07-09]`."""
    head = re.split(r",(?![^\[]*\])", node_list)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", head)
