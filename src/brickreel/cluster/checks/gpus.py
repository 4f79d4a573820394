"""The GPUs' own health, from two readings of NVML: before the other checks and after the heaviest of them.

Beside it whether all NVLinks are up, and whether anybody else computes on the GPUs, or has died and holds them still.

Limits follow NVIDIA's deployment guides: uncorrected ECC errors and failed row remaps take a GPU out of service, a
pending remap asks for a reset.
"""

from collections.abc import Collection, Mapping, Sequence

import psutil

from brickreel.cluster.checks import Check
from brickreel.telemetry.gpu import Event, Row

FOREIGN_GIB = 2.0
"""Memory in use at the start that this job's own contexts do not explain."""

# Column -> (what is wrong, what to do). Any count is too many.
COUNTS = {
    "ecc_uncorrected": ("uncorrected ECC errors", "drain the node and have the GPU replaced"),
    "remap_failed": ("failed row remaps", "drain the node and have the GPU replaced"),
    "remap_pending": ("a pending row remap", "reset the GPU or reboot the node"),
}
# Column in seconds -> what slowed the GPU down while it computed.
THROTTLES = {
    "throttle_thermal_s": "heat (software limit)",
    "throttle_hw_s": "heat (hardware limit)",
    "throttle_brake_s": "the power brake of the machine",
}
THROTTLED_S = 0.05
# The same reasons as bits of NVML's clocksEventReasons, for drivers that do not count seconds.
THROTTLE_BITS = {0x20: "heat (software limit)", 0x40: "heat (hardware limit)", 0x80: "the power brake of the machine"}


def check(node: str, before: Mapping[str, Row], after: Mapping[str, Row], events: list[Event]) -> list[Check]:
    """Judge a node's GPUs (`gpu0` -> column -> value); nothing where it has none."""
    if not before:
        return []
    wrong = []
    for name, row in after.items():
        wrong += _counts(name, row)
        wrong += _throttled(name, before.get(name, {}), row)
    xids = [event for event in events if event.event == "xid" and event.device in before]
    wrong += [f"{event.device} reported XID {event.detail}" for event in xids]
    wrong += _foreign(before)
    return [Check("GPU health", node, "fail" if wrong else "pass", len(after), "GPUs", "", "; ".join(wrong))]


def check_nvlinks(node: str, links: Mapping[str, tuple[int, int]]) -> list[Check]:
    """Judge `gpu0` -> (links up, the most that a GPU of the node has up); nothing where none is up anywhere."""
    if not links:
        return []
    wrong = [
        f"{name} has {up} of {most} NVLinks up: see to the fabric manager, else to the GPU's seat or the switch"
        for name, (up, most) in links.items()
        if up < most
    ]
    fewest = min(up for up, _ in links.values())
    return [
        Check("NVLinks", node, "fail" if wrong else "pass", fewest, "links", "as many as its peers", "; ".join(wrong))
    ]


def check_processes(node: str, before: Mapping[str, Sequence[int]], own: Collection[int]) -> list[Check]:
    """Judge who computed on the GPUs (`gpu0` -> process ids) before this job did; `own` are the job's ranks."""
    if not before:
        return []
    others = [(name, pid) for name, pids in before.items() for pid in pids if pid not in own]
    if not others:
        return [Check("GPU processes", node, "pass", 0, "of others")]
    known = [(name, pid, _describe(pid)) for name, pid in others]
    reason = "; ".join(f"{name} is in use by {words}" for name, _, words in known if words)
    if reason:
        return [Check("GPU processes", node, "fail", len(others), "of others", "none", reason + ": end it")]
    # A container sees other process ids than NVML does.
    name, pid = others[0]
    reason = f"{name} is in use by process {pid}, which can not be seen from here: it may be left from another job"
    return [Check("GPU processes", node, "warn", len(others), "of others", "none", reason)]


def _describe(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        dead = " (a zombie)" if process.status() == psutil.STATUS_ZOMBIE else ""
        return f"process {pid}{dead}, {process.name()} of {process.username()}"
    except psutil.Error:
        return ""


def _counts(name: str, row: Row) -> list[str]:
    return [
        f"{name} has {what} ({int(row[column] or 0)}): {advice}"
        for column, (what, advice) in COUNTS.items()
        if row.get(column)
    ]


def _throttled(name: str, before: Row, after: Row) -> list[str]:
    reasons = [
        cause
        for column, cause in THROTTLES.items()
        if (after.get(column) or 0.0) - (before.get(column) or 0.0) > THROTTLED_S
    ]
    bits = int(after.get("throttle_bits") or 0)
    reasons += [cause for bit, cause in THROTTLE_BITS.items() if bits & bit and cause not in reasons]
    return [f"{name} is slowed down by {cause}: see to the node's cooling and power" for cause in reasons]


def _foreign(before: Mapping[str, Row]) -> list[str]:
    return [
        f"{name} has {(row.get('gpu_mem_used_b') or 0.0) / 2**30:.1f} GiB in use by others: end what is left there"
        for name, row in before.items()
        if (row.get("gpu_mem_used_b") or 0.0) > FOREIGN_GIB * 2**30
    ]
