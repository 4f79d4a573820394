"""The proof that collectives use the network they should: bytes counted by the adapters against bytes to be sent."""

from collections.abc import Mapping, Sequence
from statistics import median

from brickreel.cluster.checks import Check
from brickreel.cluster.checks.collective import Timing
from brickreel.cluster.fabric import Fabric

FAIL_SHARE = 0.5
"""Below this share of the expected bytes the traffic went elsewhere; trees and rings differ by less."""
IDLE_RAIL = 0.25
"""Of the median rail: a rail that carries less is not used."""


def expected_bytes(timings: Sequence[Timing], world_size: int) -> float:
    """What a node of a ring over all ranks sends: all_reduce 2(n-1)/n of the data, the others (n-1)/n, per call."""
    share = (world_size - 1) / world_size
    return sum((2 if t.name == "all_reduce" else 1) * share * t.mib * 2**20 * t.calls for t in timings)


def check(
    node: str,
    before: Mapping[str, int],
    after: Mapping[str, int],
    expected: float,
    fabric: Fabric,
    way: str | None,
    cuda: bool,
) -> Check:
    """Judge what a node sent meanwhile, by interface and by port.

    NCCL's data belongs on the rails, where there are any; gloo's on the interface `way` that leads to the others.
    Without rails NCCL may use a network of its own (EFA, Slingshot), whose bytes no interface counts.
    """
    sent = {name: after[name] - before.get(name, 0) for name in after if name != "lo"}
    rails = [port.name for port in fabric.rails] if cuda else []
    paths = rails or ([way] if way else [])
    if not paths:
        return Check("network traffic", node, "not measured", reason="it is not known which interface should carry it")
    carried = sum(sent.get(name, 0) for name in paths)
    if cuda and not rails and (fabric.unfamiliar or sum(sent.values()) < FAIL_SHARE * expected):
        names = ", ".join(port.name for port in fabric.unfamiliar) or "another network"
        reason = f"there is neither InfiniBand nor RoCE, and what {names} carries is not counted here"
        return Check("network traffic", node, "not measured", reason=reason)
    if rails and not any(name in after for name in rails):
        reason = "the drivers of the adapters count no bytes"
        return Check("network traffic", node, "not measured", reason=reason)
    where = "the InfiniBand rails" if rails else paths[0]
    threshold = f"at least {FAIL_SHARE:.0%} of the expected {expected / 1e9:.3g} GB on {where}"
    problems = []
    if carried < FAIL_SHARE * expected:
        most = max(sent, key=lambda name: sent[name], default="no interface")
        problems.append(
            f"{where} of {node} carried {carried / 1e9:.3g} of {expected / 1e9:.3g} GB; most went over {most}"
            f" ({sent.get(most, 0) / 1e9:.3g} GB): look at NCCL_IB_HCA and at what is inherited"
        )
    problems += _idle(rails, sent)
    return Check(
        "network traffic", node, "fail" if problems else "pass", carried / 1e9, "GB", threshold, "; ".join(problems)
    )


def check_flaps(node: str, before: Fabric, after: Fabric) -> list[Check]:
    """Links that went down while the collectives ran."""
    counts = {port.name: port.link_downed for port in before.ports}
    flapped = [
        f"{port.name} went down {port.link_downed - (counts[port.name] or 0)} times during the check"
        for port in after.ports
        if port.link_downed is not None and port.link_downed > (counts.get(port.name) or 0)
    ]
    return [Check("link flaps", node, "fail", len(flapped), "ports", "none", "; ".join(flapped))] if flapped else []


def _idle(rails: Sequence[str], sent: Mapping[str, int]) -> list[str]:
    if len(rails) < 2:
        return []
    middle = median(sent.get(name, 0) for name in rails)
    idle = [name for name in rails if sent.get(name, 0) < IDLE_RAIL * middle]
    return [f"{', '.join(idle)} carried almost nothing while the other rails worked"] if idle else []
