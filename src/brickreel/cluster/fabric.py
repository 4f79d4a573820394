"""The network of a node as its kernel describes it: InfiniBand and Ethernet adapters, GPUs, and how far apart they are.

Everything is read below a root folder, so that tests can show a tree of their own. Sources: the kernel's
Documentation/ABI/stable/sysfs-class-infiniband and testing/sysfs-class-net; distances as NCCL names them (PIX, PXB,
PHB, NODE, SYS; "NCCL_NET_GDR_LEVEL" in its manual).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["infiniband", "roce", "ethernet"]
Distance = Literal["PIX", "PXB", "PHB", "NODE", "SYS"]

DISTANCES: tuple[Distance, ...] = ("PIX", "PXB", "PHB", "NODE", "SYS")
NVIDIA = "0x10de"
GPU_CLASSES = ("0x0300", "0x0302")
"""PCI classes of display and 3D controllers."""
FAMILIAR = ("InfiniBand", "Ethernet")
"""Link layers whose ports NCCL uses by itself, and whose counters are read."""
IP_OVER_INFINIBAND = "32"
"""ARPHRD_INFINIBAND of the kernel's if_arp.h."""
NOT_BETWEEN_NODES = ("lo", "docker", "virbr", "veth", "br-", "cni", "flannel", "cali", "tun", "tap", "ip6", "sit")


@dataclass(frozen=True)
class Port:
    """One port of a network adapter that speaks InfiniBand verbs, RoCE included."""

    device: str
    number: int
    link_layer: str
    """`InfiniBand` or `Ethernet`; something else (`Unknown`) for fabrics of their own, such as EFA."""
    state: str
    physical_state: str
    rate_gb_s: float
    """Gigabits per second."""
    numa_node: int
    pci: str
    link_downed: int | None

    @property
    def name(self) -> str:
        """As NCCL_IB_HCA writes it: `mlx5_0:1`."""
        return f"{self.device}:{self.number}"

    @property
    def active(self) -> bool:
        """Whether data can flow."""
        return self.state == "ACTIVE"


@dataclass(frozen=True)
class Gpu:
    """One GPU on the PCI bus."""

    pci: str
    numa_node: int
    cpus: str
    """Cores near it, such as `0-51,104-155`."""
    link_width: int | None
    max_link_width: int | None
    bus_gb_s: float | None
    """What its slot carries in one direction at most: lanes times GT/s, a byte per 8 transfers."""
    nearest: tuple[str, Distance] | None
    """The nearest active port and how far it is."""


@dataclass(frozen=True)
class Interface:
    """One IP interface."""

    name: str
    up: bool
    over_infiniband: bool
    speed_mb_s: float | None
    """Megabits per second."""
    default_route: bool


@dataclass(frozen=True)
class Fabric:
    """All of a node's network."""

    ports: tuple[Port, ...]
    gpus: tuple[Gpu, ...]
    interfaces: tuple[Interface, ...]

    @property
    def kind(self) -> Kind:
        """The best network that works here."""
        layers = {port.link_layer for port in self.ports if port.active}
        return "infiniband" if "InfiniBand" in layers else "roce" if "Ethernet" in layers else "ethernet"

    @property
    def rails(self) -> tuple[Port, ...]:
        """The active ports that GPUs use: those beside a GPU; where none is beside one, the fastest of the best kind.

        Storage adapters and management ports hang elsewhere, or are slower.
        """
        layer = "InfiniBand" if self.kind == "infiniband" else "Ethernet"
        active = [port for port in self.ports if port.active and port.link_layer == layer]
        beside = [port for port in active if self._beside_a_gpu(port)]
        if beside:
            return tuple(beside)
        fastest = max((port.rate_gb_s for port in active), default=0.0)
        return tuple(port for port in active if port.rate_gb_s == fastest)

    @property
    def unfamiliar(self) -> tuple[Port, ...]:
        """Active ports of neither InfiniBand nor RoCE, whose traffic is counted nowhere that is read here."""
        return tuple(port for port in self.ports if port.active and port.link_layer not in FAMILIAR)

    @property
    def idle_rails(self) -> tuple[Port, ...]:
        """Ports beside a GPU that carry nothing."""
        return tuple(port for port in self.ports if not port.active and self._beside_a_gpu(port))

    @property
    def bandwidth_gb_s(self) -> float:
        """Gigabytes per second that all rails carry together."""
        return sum(port.rate_gb_s for port in self.rails) / 8

    def _beside_a_gpu(self, port: Port) -> bool:
        return any(distance(gpu.pci, port.pci, gpu.numa_node == port.numa_node) in ("PIX", "PXB") for gpu in self.gpus)

    def summary(self) -> dict[str, Any]:
        """What two nodes must have in common, and what the report shows."""
        return {
            "kind": self.kind,
            "rails": [port.name for port in self.rails],
            "rates_gb_s": sorted({port.rate_gb_s for port in self.rails}),
            "gpus": len(self.gpus),
            "ports": [asdict(port) for port in self.ports],
        }


def read(root: Path = Path("/")) -> Fabric:
    """Read a node's network. What the kernel does not tell is None or absent; nothing raises."""
    ports = tuple(
        _port(path) for path in sorted((root / "sys/class/infiniband").glob("*/ports/*"), key=_in_natural_order)
    )
    active = [port for port in ports if port.active]
    gpus = tuple(
        _gpu(path, active)
        for path in sorted((root / "sys/bus/pci/devices").glob("*"))
        if _text(path / "vendor") == NVIDIA and _text(path / "class")[:6] in GPU_CLASSES
    )
    return Fabric(ports, gpus, _interfaces(root))


def distance(one: str, other: str, same_numa: bool) -> Distance:
    """How far two PCI devices are apart, from their resolved paths below `/sys/devices`.

    PIX: one switch; PXB: several; PHB: the same host bridge; NODE: the same NUMA node; SYS: across sockets.
    """
    a, b = (path.partition("/devices/")[2].split("/") for path in (one, other))
    if a[0] != b[0]:
        return "NODE" if same_numa else "SYS"
    common = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    if common <= 1:
        return "PHB"
    # Below the switch's upstream port stand its downstream port and the device itself.
    return "PIX" if max(len(a), len(b)) - common <= 2 else "PXB"


def _port(path: Path) -> Port:
    device = path.parent.parent
    pci = device / "device"
    downed = _number(path / "counters" / "link_downed")
    return Port(
        device=device.name,
        number=int(path.name),
        link_layer=_text(path / "link_layer"),
        state=_text(path / "state").partition(": ")[2],
        physical_state=_text(path / "phys_state").partition(": ")[2],
        rate_gb_s=_number(path / "rate") or 0.0,
        numa_node=int(_number(pci / "numa_node") or 0),
        pci=str(pci.resolve()),
        link_downed=None if downed is None else int(downed),
    )


def _gpu(path: Path, ports: list[Port]) -> Gpu:
    pci = str(path.resolve())
    numa = int(_number(path / "numa_node") or 0)
    widths = [_number(path / name) for name in ("current_link_width", "max_link_width")]
    speed = _number(path / "max_link_speed")
    ways = [(DISTANCES.index(distance(pci, port.pci, numa == port.numa_node)), port.name) for port in ports]
    nearest = min(ways, default=None)
    return Gpu(
        pci=pci,
        numa_node=numa,
        cpus=_text(path / "local_cpulist"),
        link_width=None if widths[0] is None else int(widths[0]),
        max_link_width=None if widths[1] is None else int(widths[1]),
        bus_gb_s=None if speed is None or widths[1] is None else widths[1] * speed / 8,
        nearest=(nearest[1], DISTANCES[nearest[0]]) if nearest else None,
    )


def _interfaces(root: Path) -> tuple[Interface, ...]:
    """From /proc, which shows this process's network namespace; /sys may still show another one."""
    listed = _text(root / "proc/net/dev").splitlines()[2:]
    names = [line.partition(":")[0].strip() for line in listed]
    routes = [line.split() for line in _text(root / "proc/net/route").splitlines()[1:]]
    default = {words[0] for words in routes if len(words) > 1 and words[1] == "00000000"}
    routed = {words[0] for words in routes if words}
    found = []
    for name in names:
        folder = root / "sys/class/net" / name
        state = _text(folder / "operstate")
        if name.startswith(NOT_BETWEEN_NODES) or ((folder / "master").exists() and name not in routed):
            continue
        found.append(
            Interface(
                name=name,
                up=state == "up" or (state in ("", "unknown") and name in routed) or name in routed,
                over_infiniband=_text(folder / "type") == IP_OVER_INFINIBAND,
                speed_mb_s=_number(folder / "speed"),
                default_route=name in default,
            )
        )
    return tuple(found)


def bytes_sent(root: Path = Path("/")) -> dict[str, int]:
    """Bytes sent so far by each interface and each InfiniBand port (`mlx5_0:1`) of this node."""
    found = {}
    for line in _text(root / "proc/net/dev").splitlines()[2:]:
        name, _, counts = line.partition(":")
        found[name.strip()] = int(counts.split()[8])
    for path in sorted((root / "sys/class/infiniband").glob("*/ports/*")):
        words = _number(path / "counters/port_xmit_data")
        if words is not None:
            found[f"{path.parent.parent.name}:{path.name}"] = int(words) * 4  # counted in words of four bytes
    return found


def _in_natural_order(path: Path) -> tuple[str, int, int]:
    device = path.parent.parent.name
    head = device.rstrip("0123456789")
    return head, int(device[len(head) :] or 0), int(path.name)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path).split()[0])
    except (ValueError, IndexError):
        return None
