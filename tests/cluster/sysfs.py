"""A fake `/sys` and `/proc/net` like an HGX node: eight GPUs, each beside a 400 Gb/s port, a storage adapter,
an Ethernet bond and a Docker bridge."""

import os
from pathlib import Path


def write(path: Path, text) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def hgx(root: Path, rails: int = 8, storage: bool = True, ethernet: str = "bond0") -> Path:
    """Write the tree and return its root."""
    for index in range(rails):
        numa = index * 2 // rails
        # A switch below a root port of its own: upstream port, two downstream ports, GPU and adapter below them.
        switch = root / f"sys/devices/pci0000:{index:02x}/0000:{index:02x}:01.0/0000:{index + 32:02x}:00.0"
        gpu = switch / f"0000:{index + 64:02x}:00.0/0000:{index + 96:02x}:00.0"
        card = switch / f"0000:{index + 64:02x}:01.0/0000:{index + 128:02x}:00.0"
        for name, value in {
            "vendor": "0x10de",
            "class": "0x030200",
            "numa_node": numa,
            "local_cpulist": "0-51" if numa == 0 else "52-103",
            "current_link_width": 16,
            "max_link_width": 16,
            "max_link_speed": "32.0 GT/s PCIe",
        }.items():
            write(gpu / name, value)
        link(root / "sys/bus/pci/devices" / gpu.name, gpu)
        adapter(root, f"mlx5_{index}", card, numa, 400)
    if storage:
        card = root / "sys/devices/pci0000:c0/0000:c0:01.0/0000:c1:00.0"
        adapter(root, f"mlx5_{rails + 2}", card, 1, 200)
    interface(root, "lo", state="unknown", kind=772)
    interface(root, ethernet, speed=25000)
    interface(root, "docker0", state="down")
    interface(root, "ib0", kind=32, speed=400000)
    lines = ["Inter-|", " face |"]
    lines += [f"{name}: 10 0 0 0 0 0 0 0 20 0 0 0 0 0 0 0" for name in ("lo", ethernet, "docker0", "ib0")]
    write(root / "proc/net/dev", "\n".join(lines))
    write(root / "proc/net/route", f"Iface\tDestination\n{ethernet}\t00000000\nib0\t0000000A")
    return root


def adapter(root: Path, name: str, card: Path, numa: int, rate: int) -> None:
    """One InfiniBand adapter with one port."""
    write(card / "numa_node", numa)
    folder = root / "sys/class/infiniband" / name
    link(folder / "device", card)
    set_port(root, name, rate)
    port = folder / "ports/1"
    write(port / "link_layer", "InfiniBand")
    write(port / "counters/link_downed", 0)
    write(port / "counters/port_xmit_data", 1000)


def set_port(root: Path, name: str, rate: int = 400, up: bool = True) -> None:
    """State and speed of an adapter's port."""
    port = root / "sys/class/infiniband" / name / "ports/1"
    generation = {400: "NDR", 200: "HDR", 100: "EDR"}[rate]
    write(port / "rate", f"{rate} Gb/sec (4X {generation})")
    write(port / "state", "4: ACTIVE" if up else "1: DOWN")
    write(port / "phys_state", "5: LinkUp" if up else "2: Polling")


def interface(root: Path, name: str, state: str = "up", kind: int = 1, speed: int = 10000) -> None:
    folder = root / "sys/class/net" / name
    write(folder / "operstate", state)
    write(folder / "type", kind)
    write(folder / "speed", speed)


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent), target_is_directory=True)
