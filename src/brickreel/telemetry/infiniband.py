"""InfiniBand port counters from sysfs (kernel.org: Documentation/ABI/stable/sysfs-class-infiniband)."""

from pathlib import Path

ROOT = Path("/sys/class/infiniband")

# Column -> (file under the port, factor). port_*_data count words of four bytes.
COUNTERS = {
    "ib_tx_b": ("counters/port_xmit_data", 4),
    "ib_rx_b": ("counters/port_rcv_data", 4),
    "ib_link_downed": ("counters/link_downed", 1),
    "ib_symbol_errors": ("counters/symbol_error", 1),
    "ib_link_recoveries": ("counters/link_error_recovery", 1),
    "ib_xmit_wait": ("counters/port_xmit_wait", 1),
}


class Ports:
    """All InfiniBand ports of the node; none where the node has no such network."""

    def __init__(self, root: Path = ROOT) -> None:
        self.ports = {f"{port.parent.parent.name}/{port.name}": port for port in sorted(root.glob("*/ports/*"))}

    def sample(self) -> dict[str, dict[str, float | None]]:
        """Port, such as `mlx5_0/1` -> column -> value; a counter that cannot be read is None."""
        return {name: _read_port(port) for name, port in self.ports.items()}


def _read_port(port: Path) -> dict[str, float | None]:
    row: dict[str, float | None] = {}
    for column, (file, factor) in COUNTERS.items():
        value = _first_number(port / file)
        row[column] = None if value is None else value * factor
    # "400 Gb/sec (4X NDR)"
    row["ib_rate_gb_s"] = _first_number(port / "rate")
    return row


def _first_number(path: Path) -> float | None:
    try:
        return float(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
