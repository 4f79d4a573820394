"""Signs of what slows a node: what the telemetry of its GPUs and its host says against their peers."""

from statistics import median
from typing import Any

MORE_PCT = 5.0
"""Points by which a slow rank's node must stand out; alone, without a slow rank, it is no finding."""
CROWDED_PCT = 20.0
"""Waiting for a core that explains a slow rank by itself, also where all nodes are crowded."""
THROTTLE_WORDS = {
    "power": "held at the power cap",
    "thermal": "slowed by software for heat",
    "hw": "slowed by hardware for heat",
    "brake": "slowed by the power brake",
}
THROTTLED_PCT = {"power": 50.0}


def of_node(run: dict[str, Any], node: str | None) -> tuple[list[str], str]:
    """What the telemetry of a slow node says against its peers, and the sentence for when it says nothing.

    Of all its GPUs: which of them was a rank's no record says, since tasks may be bound to them in any order.
    """
    signs: list[str] = []
    gpus = [gpu for gpu in run["gpu_devices"] if gpu["node"] == node]
    for gpu in gpus:
        signs += _of_gpu(gpu, [peer for peer in run["gpu_devices"] if peer is not gpu])
    hosts = {host["node"]: host for host in run["hosts"] if host["cores_mean"] is not None}
    if node in hosts:
        signs += _of_host(hosts[node], [host for host in hosts.values() if host["node"] != node])
    return signs, _without(run, gpus, node in hosts)


def _without(run: dict[str, Any], gpus: list[dict[str, Any]], recorded: bool) -> str:
    """What can be said where there is no sign."""
    if not recorded:
        return "what slows it is not known: its node was not recorded"
    if run["gpu_hours"] is None and not gpus:
        return "nothing on its node stands out"
    if all(gpu[f"throttle_{cause}_pct"] is None for gpu in gpus for cause in THROTTLE_WORDS):
        return "what slows it is not known: throttling of its node's GPUs was not measured"
    return "no throttling or error was recorded on the GPUs of its node"


def _of_gpu(gpu: dict[str, Any], peers: list[dict[str, Any]]) -> list[str]:
    signs = []
    clocks = [peer["sm_mhz"] for peer in peers if peer["sm_mhz"] is not None]
    if gpu["sm_mhz"] is not None and clocks and gpu["sm_mhz"] < 0.97 * median(clocks):
        signs.append(f"the SM clock is {gpu['sm_mhz']:,.0f} MHz, that of its peers {median(clocks):,.0f} MHz")
    for cause in ("thermal", "hw", "brake", "power"):
        share = gpu[f"throttle_{cause}_pct"]
        if share is not None and share > THROTTLED_PCT.get(cause, 0.1):
            signs.append(f"{THROTTLE_WORDS[cause]} for {share:.1f} % of the time")
    return [f"{gpu['device']} of its node: {', '.join([*signs, *found])}"] if (found := faults(gpu)) or signs else []


def faults(gpu: dict[str, Any]) -> list[str]:
    """XIDs, uncorrected memory errors, row remappings that wait or failed."""
    signs = [f"XID {xid}" for xid in gpu["xids"]]
    signs += [f"{gpu['ecc_uncorrected']:.0f} uncorrected memory errors"] if gpu["ecc_uncorrected"] else []
    signs += ["a row remapping failed"] if gpu["remap_failed"] else []
    return signs + (["a row remapping waits for a reset"] if gpu["remap_pending"] else [])


def _of_host(own: dict[str, Any], peers: list[dict[str, Any]]) -> list[str]:
    signs = []
    for name, text in (
        ("throttled_pct", "its cgroup was throttled for {:.1f} % of the time"),
        ("run_delay_pct", "its processes waited for a core for {:.1f} % of the time"),
    ):
        known = [peer[name] for peer in peers if peer[name] is not None]
        if own[name] is not None and known and own[name] > median(known) + MORE_PCT:
            signs.append(text.format(own[name]) + f", those of its peers {median(known):.1f} %")
    waited = own["run_delay_pct"]
    if not signs and waited is not None and waited > CROWDED_PCT:
        also = "; so did those of other nodes" if peers else ""
        signs.append(f"the processes of its node waited for a core for {waited:.1f} % of the time{also}")
    known = [peer["cores_mean"] for peer in peers if peer["cores_mean"] is not None]
    if own["cores_mean"] is not None and known and own["cores_mean"] < 0.9 * median(known):
        signs.append(f"its processes got {own['cores_mean']:.2f} cores, those of its peers {median(known):.2f}")
    return signs
