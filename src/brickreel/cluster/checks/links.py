"""The node's network adapters and GPU slots: up, at full rate and width, and the same on every rail."""

from collections import Counter

from brickreel.cluster.checks import Check
from brickreel.cluster.fabric import Fabric


def check(node: str, fabric: Fabric) -> list[Check]:
    """One check for the rails and one for the GPUs' slots; each names what is wrong."""
    found = []
    if fabric.ports:
        found.append(_rails(node, fabric))
    if any(gpu.link_width for gpu in fabric.gpus):
        found.append(_slots(node, fabric))
    return found


def _rails(node: str, fabric: Fabric) -> Check:
    wrong = [
        f"{port.name} is {port.state} / {port.physical_state}: look at its cable and transceiver"
        for port in fabric.idle_rails
    ]
    usual = Counter(port.rate_gb_s for port in fabric.rails).most_common(1)
    wrong += [
        f"{port.name} runs at {port.rate_gb_s:g} Gb/s, its peers at {usual[0][0]:g}: look at its cable and transceiver"
        for port in fabric.rails
        if port.rate_gb_s < usual[0][0]
    ]
    if not fabric.rails and not wrong:
        if fabric.unfamiliar:
            ports = ", ".join(f"{port.name} ({port.link_layer or 'no link layer'})" for port in fabric.unfamiliar)
            reason = f"{ports} is neither InfiniBand nor RoCE: its rate is not known"
            return Check("network adapters", node, "not measured", reason=reason)
        wrong = ["no network adapter is active: everything would go through TCP"]
    names = f"{len(fabric.rails)} rails, {fabric.bandwidth_gb_s:g} GB/s"
    return Check("network adapters", node, "fail" if wrong else "pass", names, "", "all up, one rate", "; ".join(wrong))


def _slots(node: str, fabric: Fabric) -> Check:
    narrow = [
        f"the GPU at {gpu.pci.rsplit('/', 1)[-1]} has {gpu.link_width} of {gpu.max_link_width} PCIe lanes: reseat it"
        for gpu in fabric.gpus
        if gpu.link_width and gpu.max_link_width and gpu.link_width < gpu.max_link_width
    ]
    return Check("GPU slots", node, "fail" if narrow else "pass", len(fabric.gpus), "GPUs", "", "; ".join(narrow))


def summary(fabric: Fabric) -> dict[str, str]:
    """What must be alike on all nodes of a run, for `software.compare`."""
    rates = "/".join(sorted({f"{port.rate_gb_s:g}" for port in fabric.rails}))
    return {
        "network": f"{fabric.kind}, {len(fabric.rails)} rails" + (f" at {rates} Gb/s" if rates else ""),
        "GPUs": str(len(fabric.gpus)),
    }
