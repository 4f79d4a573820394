"""Every node with every other one: the pair that is slow names the node, where an all-node benchmark only says slow."""

from collections.abc import Mapping, Sequence
from statistics import median

from brickreel.cluster.checks import Check
from brickreel.cluster.checks.collective import Timing, measure

WARN_SHARE, FAIL_SHARE = 0.9, 0.8
"""Of the median of all pairs, on GPUs."""
CPU_WARN_SHARE, CPU_FAIL_SHARE = 0.4, 0.2
"""The same where pairs share cores: only a broken link is told from noise."""

Pair = tuple[str, str]


def rounds(nodes: Sequence[str]) -> list[list[Pair]]:
    """A round robin: every node meets every other once, and in each round no node stands in two pairs."""
    circle: list[str | None] = [*nodes] if len(nodes) % 2 == 0 else [*nodes, None]
    plan = []
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        both = zip(circle[:half], reversed(circle[half:]), strict=True)
        plan.append([(one, other) for one, other in both if one is not None and other is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return plan


def measure_all(nodes: Sequence[str], rank: int, mib: float, device: str) -> dict[Pair, Timing]:
    """all_reduce between the ranks of each pair of nodes; `nodes` is by rank. A collective call of all ranks.

    Returns the pairs that this rank took part in.
    """
    import torch.distributed as dist

    mine = {}
    for meeting in rounds(list(dict.fromkeys(nodes))):
        own = None
        for pair in meeting:
            ranks = [place for place, node in enumerate(nodes) if node in pair]
            group = dist.new_group(ranks)
            if rank in ranks:
                own = (pair, group)
        if own:
            mine[own[0]] = measure("all_reduce", mib, device, own[1])
            dist.destroy_process_group(own[1])
        dist.barrier()
    return mine


def check(speeds: Mapping[Pair, float], cuda: bool) -> list[Check]:
    """Judge each node by its best pair: a node all of whose pairs are slow is slow itself. GB/s by pair."""
    nodes = sorted({node for pair in speeds for node in pair})
    if len(nodes) < 3:
        value = next(iter(speeds.values()), None)
        return [Check("pairs of nodes", "all", "pass", value, "GB/s", "two nodes: there is nothing to compare with")]
    middle = median(speeds.values())
    warn, fail = (WARN_SHARE, FAIL_SHARE) if cuda else (CPU_WARN_SHARE, CPU_FAIL_SHARE)
    found = []
    for node in nodes:
        best = max(speed for pair, speed in speeds.items() if node in pair)
        share = best / middle
        result = "fail" if share < fail else "warn" if share < warn else "pass"
        reason = (
            f"no pair with {node} is faster than {best:.3g} GB/s, the median of all pairs is {middle:.3g}: look at its"
            " adapters and cables"
        )
        found.append(
            Check(
                "pairs of nodes",
                node,
                result,  # type: ignore[arg-type]
                best,
                "GB/s",
                f"fail below {fail:.0%}, warn below {warn:.0%} of {middle:.3g}",
                "" if result == "pass" else reason,
            )
        )
    return found
