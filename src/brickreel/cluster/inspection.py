"""Looking at the nodes of a running job together: each rank measures, rank 0 judges. Knows no model."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from brickreel import files
from brickreel.cluster import distributed, fabric, network, sweep
from brickreel.cluster.checks import (
    Check,
    clock,
    collective,
    compute,
    gpus,
    inherited,
    limits,
    links,
    pairs,
    software,
    storage,
    traffic,
)
from brickreel.cluster.ranks import Ranks
from brickreel.config import Preflight
from brickreel.telemetry.gpu import Gpus, Row

GEMM_S = {True: 0.5, False: 30.0}
"""Seconds of matrix products, quick and long: a GPU needs half a minute to grow hot."""
SIZES_MIB = {True: (1.0, 16.0), False: (1.0, 64.0, 1024.0)}
CPU_MOST_MIB = 16.0
PAIR_MIB = {"cpu": 4.0, "cuda": 256.0}
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter")
RAIL_EFFICIENCY = 0.92
"""Of the adapters' rate: 46 of 50 GB/s per 400 Gb/s adapter (NVIDIA/nccl-tests, issue 290)."""
LARGE_MIB = 1024.0
"""Bandwidth is judged from this size on."""
SHM_PER_RANK_GIB = 1 / 64
"""What the ranks' loader threads and NCCL's own shared segments take."""


class Inspection:
    """One look at the nodes, as this rank takes part in it."""

    def __init__(
        self,
        ranks: Ranks,
        device: str,
        settings: Preflight,
        folder: Path,
        same: Mapping[str, Path],
        checkpoints: tuple[Path, float | None] | None = None,
    ) -> None:
        """`folder` is for trial writes; the files of `same` must be alike on all nodes.

        `checkpoints`: where they will be, and how many GiB those that are kept need.
        """
        self.ranks, self.device, self.settings, self.folder = ranks, device, settings, folder
        self.checkpoints = checkpoints
        self.leader = ranks.local_rank == 0
        self.fabric = fabric.read()
        self.gpus = Gpus() if self.leader else None
        self.gpus_before = self._gpus_now()
        self.processes_before = self.gpus.processes() if self.gpus else {}
        self.sent_before = fabric.bytes_sent()
        self.timings: list[collective.Timing] = []
        self.same = same
        everyone = sweep.gather((ranks.node, os.getpid()), ranks)
        self.nodes = [node for node, _ in everyone]
        self.own = [pid for node, pid in everyone if node == ranks.node]
        others = [node for node in self.nodes if node != ranks.node]
        self.way = network.interface_towards(others[0]) if others else None

    @property
    def leaders(self) -> list[int]:
        """The first rank of every node."""
        return [self.nodes.index(node) for node in dict.fromkeys(self.nodes)]

    def everything(self, index: pa.Table | None, written: Mapping[str, str]) -> list[Check]:
        """All checks that know no model, on rank 0; an empty list elsewhere. A collective call of all ranks."""
        alone = (self.node_checks(index, written) if self.leader else []) + self.storage()
        rate = compute.tflops(self.device, GEMM_S[self.settings.quick])
        copies = self._copies()
        everyone = sweep.gather((alone, self.facts() if self.leader else {}, rate, copies), self.ranks)
        names = [self.nodes[rank] for rank in self.leaders]
        offsets = self._offsets()
        together = self.collectives() + ([] if self.settings.quick else self.pairs())
        late = sweep.gather(self.afterwards() if self.leader else [], self.ranks)
        if self.ranks.rank:
            return []
        checks = worst_per_node([check for found, *_ in everyone for check in found])
        checks += software.compare(names, [everyone[rank][1] for rank in self.leaders])
        checks += compute.check(self.nodes, [found[2] for found in everyone], self.device == "cuda")
        slots = [gpu.bus_gb_s for gpu in self.fabric.gpus]  # alike on all nodes, or `software` has said so
        bus = min((speed for speed in slots if speed), default=None)
        checks += worst_per_node(compute.check_copies(self.nodes, [found[3] for found in everyone], bus))
        checks += clock.check(names, offsets) if len(names) > 1 else []
        return checks + together + worst_per_node([check for found in late for check in found])

    def node_checks(self, index: pa.Table | None, written: Mapping[str, str]) -> list[Check]:
        """What one process per node can say about its node alone. `written`: what the run's own nccl.env sets."""
        node, devices = self.ranks.node, [port.device for port in self.fabric.ports]
        checks = limits.check(node, self.ranks.local_world_size, SHM_PER_RANK_GIB, bool(self.fabric.rails))
        checks += inherited.check(node, inherited.gather(os.environ), written, devices)
        checks += self._interfaces()
        checks += links.check(node, self.fabric)
        if self.checkpoints:
            checks.append(storage.check_space(node, *self.checkpoints))
        if index is None:
            reason = "there is no encoded dataset yet: run encode first"
            return [*checks, Check("dataset", node, "not measured", reason=reason)]
        return [*checks, storage.check_dataset(node, index)]

    def _gpus_now(self) -> dict[str, Row]:
        return self.gpus.sample() if self.gpus else {}

    def _copies(self) -> compute.Copies | None:
        """Each GPU's copies while its node's others rest: two may share a PCIe switch and its way to the host."""
        found = None
        turns = max(sweep.gather(self.ranks.local_world_size, self.ranks)) if self.device != "cpu" else 0
        for turn in range(turns):
            if turn == self.ranks.local_rank:
                found = compute.copies(self.device)
            sweep.gather(turn, self.ranks)
        return found

    def _interfaces(self) -> list[Check]:
        import psutil

        present = [name for name, found in psutil.net_if_addrs().items() if found]
        found = []
        for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if len(self.leaders) > 1 else ():
            result, reason = network.judge_interface(name, os.environ.get(name, ""), present, self.way)
            if reason:
                found.append(Check("bootstrap interface", self.ranks.node, result, self.way, reason=reason))
        return found

    def storage(self) -> list[Check]:
        """All ranks write and read at once, as they do when a checkpoint is due."""
        limit = self.settings
        return storage.check_speed(
            self.ranks.node, self.folder, limit.disk_mib, limit.disk_warn_mib_s, limit.disk_fail_mib_s
        )

    def facts(self) -> dict[str, str]:
        """What must be alike on every node."""
        found = software.facts() | links.summary(self.fabric)
        for name, path in self.same.items():
            found[name] = files.sha256(path)[:12] if path.is_file() else "absent"
        return found

    def _offsets(self) -> list[float]:
        leaders = self.leaders
        if len(leaders) < 2 or self.ranks.rank not in leaders:
            return [0.0]
        return clock.offsets(leaders, self.ranks.rank)

    def collectives(self) -> list[Check]:
        """The three collectives of sharded training over all ranks."""
        if self.ranks.world_size == 1:
            return [Check("collectives", "all", "not measured", reason="there is one rank")]
        sizes = SIZES_MIB[self.settings.quick]
        if self.device == "cpu":
            sizes = tuple(dict.fromkeys(min(size, CPU_MOST_MIB) for size in sizes))
        self.timings = [collective.measure(name, size, self.device) for name in COLLECTIVES for size in sizes]
        rails = RAIL_EFFICIENCY * self.fabric.bandwidth_gb_s
        judged = self.device == "cuda" and len(self.leaders) > 1 and rails > 0
        return [
            collective.check(timing, "all", rails if judged and timing.mib >= LARGE_MIB else None)
            for timing in self.timings
        ]

    def pairs(self) -> list[Check]:
        """Every node with every other."""
        if len(self.leaders) < 2:
            return []
        mine = pairs.measure_all(self.nodes, self.ranks.rank, PAIR_MIB[self.device], self.device)
        everyone = sweep.gather({pair: timing.bus_gb_s for pair, timing in mine.items()}, self.ranks)
        return pairs.check({pair: speed for found in everyone for pair, speed in found.items()}, self.device == "cuda")

    def afterwards(self) -> list[Check]:
        """What the counters of this node say after the collectives."""
        node, after = self.ranks.node, fabric.read()
        found = traffic.check_flaps(node, self.fabric, after)
        if len(self.leaders) > 1:
            expected = traffic.expected_bytes(self.timings, self.ranks.world_size)
            cuda = self.device == "cuda"
            found.append(
                traffic.check(node, self.sent_before, fabric.bytes_sent(), expected, self.fabric, self.way, cuda)
            )
        if self.gpus:
            found += gpus.check(node, self.gpus_before, self._gpus_now(), self.gpus.events())
            found += gpus.check_nvlinks(node, self.gpus.nvlinks())
            found += gpus.check_processes(node, self.processes_before, self.own)
        return found

    def fabrics(self) -> tuple[dict[str, fabric.Fabric], str | None]:
        """The network of every node, and the interface through which they all reach each other."""
        found = sweep.gather((self.fabric, self.way), self.ranks)
        ways = {way for _, way in found if way}
        return dict(zip(self.nodes, (one for one, _ in found), strict=True)), ways.pop() if len(ways) == 1 else None


def worst_per_node(checks: Sequence[Check]) -> list[Check]:
    """One check per name and node, the worst: ranks of a node say the same thing many times."""
    order = ("fail", "warn", "pass", "not measured")
    found: dict[tuple[str, str], Check] = {}
    keep = [check for check in checks if check.name == "inherited variables"]
    for check in checks:
        key = (check.name, check.node)
        if check not in keep and (key not in found or order.index(check.result) < order.index(found[key].result)):
            found[key] = check
    return [*found.values(), *keep]


def from_first(value: Any, ranks: Ranks) -> Any:
    """Rank 0's value, on every rank."""
    if ranks.world_size == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, group=distributed.words())
    return box[0]
