"""Which network variables a run needs, each with its reason, and the file `nccl.env` that carries them into its job.

On most machines two are enough: which adapters, and which interface for meeting. Everything else stays at NCCL's
default unless a paired measurement says otherwise (`tuning`).
"""

import os
import re
import shlex
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from brickreel.cluster.checks import Result
from brickreel.cluster.fabric import NOT_BETWEEN_NODES, Fabric


class Variable(NamedTuple):
    """One line of nccl.env."""

    name: str
    value: str
    reason: str


def advise(fabrics: Mapping[str, Fabric], way: str | None) -> list[Variable]:
    """Variables for a job on these nodes (name -> network).

    `way` is the interface through which the nodes reach each other, where all of them agree on one.
    """
    found: list[Variable] = []
    if len(fabrics) > 1 and way:
        found += [
            Variable(
                "NCCL_SOCKET_IFNAME",
                f"={way}",
                f"the nodes reach each other over {way}; left alone, NCCL prefers any interface called ib*",
            ),
            Variable("GLOO_SOCKET_IFNAME", way, f"gloo else takes what the host name resolves to; {way} is known good"),
        ]
    found += _adapters(list(fabrics.values()))
    if any(fabric.gpus for fabric in fabrics.values()):
        found += [
            Variable("NCCL_DEBUG", "WARN", "says what went wrong when something does; costs nothing"),
            Variable(
                "TORCH_FR_BUFFER_SIZE",
                "20000",
                "the flight recorder keeps the last collectives of every rank: after a hang they name the rank",
            ),
        ]
    return found


def _adapters(fabrics: Sequence[Fabric]) -> list[Variable]:
    """NCCL_IB_HCA, exact, where other active ports than the rails are there."""
    if not fabrics or not all(fabric.rails for fabric in fabrics):
        return []
    rails = {tuple(port.name for port in fabric.rails) for fabric in fabrics}
    others = sorted({port.name for f in fabrics for port in f.ports if port.active and port not in f.rails})
    if len(rails) > 1 or not others:
        return []
    names = ",".join(next(iter(rails)))
    reason = f"{', '.join(others)} are active too but are not beside the GPUs; `=` makes names exact, not prefixes"
    return [Variable("NCCL_IB_HCA", f"={names}", reason)]


def text(variables: Sequence[Variable], remarks: Sequence[str] = ()) -> str:
    """The file: shell assignments, the reason above each."""
    lines = ["# Network variables of this run, found by preflight. Sourced as shell by the batch scripts.", ""]
    lines += [f"# {remark}" for remark in remarks]
    for variable in variables:
        lines += [f"# {variable.reason}", f"{variable.name}={shlex.quote(variable.value)}", ""]
    if not variables:
        lines.append("# Nothing has to be set: NCCL's own choice is best where nothing is known.")
    return "\n".join(lines).rstrip() + "\n"


def read(path: Path) -> dict[str, str]:
    """The variables of such a file; empty when there is none."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        match = re.match(r"([A-Z][A-Z0-9_]*)=(.*)$", line)
        if match:
            words = shlex.split(match.group(2))
            found[match.group(1)] = words[0] if words else ""
    return found


def interface_towards(host: str) -> str | None:
    """The interface through which this node sends to `host`; None when it is this node itself or cannot be reached."""
    import psutil

    try:
        address = socket.gethostbyname(host)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing: it only asks the kernel for the way
            own = probe.getsockname()[0]
    except OSError:
        return None
    if own == address or own.startswith("127."):
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(item.address == own for item in addresses):
            return name
    return None


def judge_interface(variable: str, value: str, present: Sequence[str], way: str | None) -> tuple[Result, str]:
    """What is to be said of an inherited interface variable, and why.

    `present` are the interfaces of this node with an address, `way` the one that the kernel takes to the other nodes:
    another one may be meant, but one that leads to no other node is not.
    """
    if not value or value.startswith("^"):
        return "pass", ""
    if variable.startswith("GLOO"):
        chosen = [name for name in value.split(",") if name in present]
    else:
        exact = value.startswith("=")
        names = [name.partition(":")[0] for name in value.lstrip("=").split(",")]
        chosen = [one for one in present if any(one == name or (not exact and one.startswith(name)) for name in names)]
    if not chosen:
        return "fail", f"{variable}={value} names no interface of this node, which has {', '.join(present)}"
    advice = f"the other nodes are reached over {way}: set {variable}={way} or remove it" if way else "remove it"
    if all(name.startswith(NOT_BETWEEN_NODES) for name in chosen):
        return "fail", f"{variable}={value} leads to no other node; {advice}"
    if way and way not in chosen:
        return "warn", f"{variable}={value} may be meant, but {advice}"
    return "pass", ""


def refuse_dead_end(host: str) -> None:
    """Raise ValueError when gloo was told to meet the others over an interface that leads to none of them."""
    import psutil

    value = os.environ.get("GLOO_SOCKET_IFNAME", "")
    way = interface_towards(host)
    if value and way:
        result, reason = judge_interface("GLOO_SOCKET_IFNAME", value, list(psutil.net_if_addrs()), way)
        if result == "fail":
            raise ValueError(f"this node cannot meet {host}: {reason}")
