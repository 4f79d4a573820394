"""Which process of how many this is, found from the environment: torchrun, then Slurm, then a single process."""

import os
import socket
from collections.abc import Mapping
from typing import NamedTuple


class Ranks(NamedTuple):
    """This process's place in the job."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node: str = "localhost"
    source: str = "single"
    """torchrun, slurm or single: where the numbers come from."""


def discover(environment: Mapping[str, str] | None = None) -> Ranks:
    """Read the ranks from an environment (this process's own when None).

    Raises ValueError when a variable is there but is not a number, or is missing beside its fellows.
    """
    env = os.environ if environment is None else environment
    node = env.get("SLURMD_NODENAME") or socket.gethostname()
    for source, names in _SOURCES.items():
        if all(name in env for name in names[:2]):
            rank, world_size, local_rank, local_world_size = _numbers(env, source, names)
            return Ranks(rank, world_size, local_rank, local_world_size, node, source)
    return Ranks(node=node)


# rank, world size, local rank, local world size
_SOURCES = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}


def _numbers(env: Mapping[str, str], source: str, names: tuple[str, ...]) -> list[int]:
    values = []
    for name in names:
        text = env.get(name, "")
        # Slurm writes tasks per node as "2(x3),1": nodes of this project's jobs are filled evenly.
        head = text.split("(")[0].split(",")[0]
        if not head.isdecimal():
            raise ValueError(f"{name}={text!r} is not a rank or size, though {source} set {names[0]}")
        values.append(int(head))
    return values
