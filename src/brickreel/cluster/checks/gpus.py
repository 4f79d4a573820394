"""The GPUs' own health, from two readings of NVML: before the other checks and after the heaviest of them.

Limits follow NVIDIA's deployment guides: uncorrected ECC errors and failed row remaps take a GPU out of service, a
pending remap asks for a reset.
"""

from collections.abc import Mapping

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
    wrong += [f"{event.device} reported XID {event.detail}" for event in events if event.event == "xid"]
    wrong += _foreign(before)
    return [Check("GPU health", node, "fail" if wrong else "pass", len(after), "GPUs", "", "; ".join(wrong))]


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
