"""Each rank on the processor cores beside its GPU, so that copies and the loader's memory do not cross sockets.

PyTorch's own measurement of such a binding: 1 to 10 % (torchrun's `--numa-binding`). Memory follows by itself: Linux
gives a thread memory of the NUMA node on which it runs.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from brickreel.cluster import fabric
from brickreel.cluster.ranks import Ranks

logger = logging.getLogger("brickreel")

SWITCH = "BRICKREEL_BIND_CPUS"


class Place(NamedTuple):
    """Where a rank is: its node, its GPU's PCI address, and the cores that it may use so far."""

    node: str
    pci: str
    allowed: frozenset[int]


def bind(ranks: Ranks, device: int) -> None:
    """Keep this rank to its share of the cores beside its GPU. A collective call of all ranks; only for GPUs.

    `BRICKREEL_BIND_CPUS=0` in slurm/site.env turns it off, where the site binds ranks itself.
    """
    from brickreel.cluster import sweep

    if os.environ.get(SWITCH, "1") == "0":
        return
    everyone = sweep.gather(Place(ranks.node, pci_address(device), frozenset(os.sched_getaffinity(0))), ranks)
    cores = share(ranks.rank, everyone, near_cores(fabric.read()), siblings())
    if not cores:
        return
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except OSError:
            continue  # it has ended meanwhile
    logger.info("rank %d is bound to cores %s beside GPU %s", ranks.rank, listed(cores), everyone[ranks.rank].pci)


def pci_address(device: int) -> str:
    """A CUDA device's address as the kernel writes it: `0000:1b:00.0`."""
    import torch

    found: Any = torch.cuda.get_device_properties(device)  # its stub does not know these fields
    return f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"


def near_cores(found: fabric.Fabric) -> dict[str, frozenset[int]]:
    """PCI address of each GPU -> cores beside it."""
    return {gpu.pci.rsplit("/", 1)[-1]: frozenset(parse(gpu.cpus)) for gpu in found.gpus if gpu.cpus}


def share(
    rank: int, everyone: Sequence[Place], near: Mapping[str, frozenset[int]], twins: Mapping[int, frozenset[int]]
) -> frozenset[int]:
    """The cores of a rank: those beside its GPU that it may use, divided among the ranks of its node that share them.

    A physical core is not divided: its hardware threads (`twins`) stay together. Empty, which means to leave things as
    they are, where nothing is known, where the site allows no core beside the GPU, or where there are not enough.
    """
    own = everyone[rank]
    mine = own.allowed & near.get(own.pci, frozenset())
    peers = [
        place
        for place, other in enumerate(everyone)
        if other.node == own.node and other.allowed & near.get(other.pci, frozenset()) == mine
    ]
    whole = sorted({tuple(sorted(twins.get(core, frozenset({core})) & mine)) for core in mine})
    each = len(whole) // len(peers)
    first = peers.index(rank) * each
    return frozenset(core for cores in whole[first : first + each] for core in cores)


def siblings(root: Path = Path("/")) -> dict[int, frozenset[int]]:
    """Core -> the hardware threads of the same physical core, itself among them."""
    found = {}
    for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list"):
        found[int(path.parent.parent.name[3:])] = frozenset(parse(path.read_text()))
    return found


def parse(text: str) -> list[int]:
    """`0-3,8` as numbers."""
    numbers: list[int] = []
    for part in text.strip().split(",") if text.strip() else []:
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def listed(cores: Iterable[int]) -> str:
    """Numbers as `0-3,8`."""
    parts: list[list[int]] = []
    for core in sorted(cores):
        if parts and core == parts[-1][1] + 1:
            parts[-1][1] = core
        else:
            parts.append([core, core])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
