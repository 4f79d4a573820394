"""CPU, memory, storage and network of the host: /proc, cgroup v2, NFS and Lustre statistics."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

Row = dict[str, float | None]

SHARE_OF_A_CORE_FOR_SCANS = 0.002
"""Walking all of /proc costs tens of milliseconds on a busy node: it is repeated only so often."""


class Host:
    """Samples the node and the process tree below `pid`, the recorder itself excepted.

    The roots are parameters because tests hand in trees of their own. Whatever a kernel does not offer is None.
    """

    def __init__(
        self,
        pid: int,
        proc: Path = Path("/proc"),
        cgroups: Path = Path("/sys/fs/cgroup"),
        interfaces: Path = Path("/sys/class/net"),
    ) -> None:
        self.proc, self.pid, self.interfaces = proc, pid, interfaces
        self.cgroup = _cgroup_of(proc / str(pid), cgroups)
        self.tick_s = 1 / os.sysconf("SC_CLK_TCK")
        self.page_b = os.sysconf("SC_PAGE_SIZE")
        self.tree: list[int] = [pid]
        self.rescan_at = 0.0
        self.highest: dict[str, float] = {}

    def sample(self) -> Row:
        """One row of the host's columns."""
        row: Row = {}
        for part in (self._node, self._network, self._processes, self._control_group, self._pressure, self._shares):
            row.update(_attempt(part))
        return row

    def _node(self) -> Row:
        cpu = [int(field) for field in (self.proc / "stat").read_text().split("\n", 1)[0].split()[1:]]
        memory = dict(line.split(":") for line in (self.proc / "meminfo").read_text().splitlines())
        # user, nice, system, idle, iowait, irq, softirq, steal; guest time is within user already.
        return {
            "node_cpu_busy_s": (sum(cpu[:3]) + sum(cpu[5:8])) * self.tick_s,
            "node_cpu_iowait_s": cpu[4] * self.tick_s,
            "node_cores": os.cpu_count(),
            "allowed_cores": min(self._set_cores(), self._quota_cores()),
            "node_mem_total_b": int(memory["MemTotal"].split()[0]) * 1024,
            "node_mem_available_b": int(memory["MemAvailable"].split()[0]) * 1024,
        }

    def _set_cores(self) -> int:
        """Cores of the job's set; this process's own binding may be that of a single rank."""
        try:
            cores = (self.cgroup / "cpuset.cpus.effective").read_text() if self.cgroup else ""
            spans = [part.partition("-") for part in cores.strip().split(",") if part]
            return sum(int(last or first) - int(first) + 1 for first, _, last in spans) or len(os.sched_getaffinity(0))
        except (OSError, ValueError):
            return len(os.sched_getaffinity(0))

    def _quota_cores(self) -> float:
        try:
            quota, period = (self.cgroup / "cpu.max").read_text().split() if self.cgroup else ("max", "1")
            return float("inf") if quota == "max" else int(quota) / int(period)
        except (OSError, ValueError):
            return float("inf")

    def _network(self) -> Row:
        lines = (self.proc / "net/dev").read_text().splitlines()[2:]
        counts = {name.strip(): fields.split() for name, _, fields in (line.partition(":") for line in lines)}
        # A bond, a bridge and a VLAN, which have no hardware, count again what passes through interfaces that have.
        real = [name for name in counts if (self.interfaces / name / "device").exists()]
        used = [counts[name] for name in real or counts.keys() - {"lo"}]
        return {"net_rx_b": sum(int(fields[0]) for fields in used), "net_tx_b": sum(int(fields[8]) for fields in used)}

    def _processes(self) -> Row:
        if time.monotonic() >= self.rescan_at:
            started = time.thread_time()
            self.tree = descendants(self.proc, self.pid, leave_out=os.getpid())
            self.rescan_at = time.monotonic() + (time.thread_time() - started) / SHARE_OF_A_CORE_FOR_SCANS
        cpu = delay = memory = 0.0
        io: list[tuple[int, int]] = []
        alive = 0
        for pid in self.tree:
            folder = self.proc / str(pid)
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            alive += 1
            # utime, stime, and those of children that ended and were waited for
            cpu += sum(int(field) for field in fields[11:15]) * self.tick_s
            memory += int(fields[21]) * self.page_b
            delay += _run_delay_s(folder)
            if (amounts := _storage(folder)) is not None:
                io.append(amounts)
        if not alive:
            return {}
        row: Row = {
            "tree_cpu_s": self._never_falling("cpu", cpu),
            "tree_run_delay_s": self._never_falling("delay", delay),
            "tree_rss_b": memory,
            "tree_processes": alive,
        }
        if io:
            row["tree_read_b"] = self._never_falling("read", sum(amount[0] for amount in io))
            row["tree_write_b"] = self._never_falling("write", sum(amount[1] for amount in io))
        return row

    def _never_falling(self, name: str, value: float) -> float:
        """A process that vanishes takes its counts along until its parent waits for it: keep the highest seen."""
        self.highest[name] = max(value, self.highest.get(name, value))
        return self.highest[name]

    def _control_group(self) -> Row:
        if self.cgroup is None:
            return {}
        cpu = _pairs(self.cgroup / "cpu.stat")
        memory = _pairs(self.cgroup / "memory.stat")
        current = _number(self.cgroup / "memory.current")
        storage = _io_stat(self.cgroup / "io.stat")
        inactive = memory.get("inactive_file")
        return {
            "cgroup_cpu_s": _scaled(cpu.get("usage_usec"), 1e-6),
            "cgroup_throttled_s": _scaled(cpu.get("throttled_usec"), 1e-6),
            "cgroup_mem_b": None if current is None or inactive is None else current - inactive,
            "cgroup_mem_peak_b": _number(self.cgroup / "memory.peak"),
            "cgroup_mem_limit_b": _number(self.cgroup / "memory.max"),
            "cgroup_oom_kills": _pairs(self.cgroup / "memory.events").get("oom_kill"),
            "cgroup_read_b": storage[0] if storage else None,
            "cgroup_write_b": storage[1] if storage else None,
        }

    def _pressure(self) -> Row:
        row: Row = {}
        for name, file in (("cpu", "cpu"), ("mem", "memory"), ("io", "io")):
            try:
                some = (self.proc / "pressure" / file).read_text().split("\n", 1)[0]
                row[f"pressure_{name}_s"] = int(some.rpartition("total=")[2]) * 1e-6
            except (OSError, ValueError):
                row[f"pressure_{name}_s"] = None
        return row

    def _shares(self) -> Row:
        """Bytes over network file systems, which the cgroup's io.stat does not see."""
        amounts = [
            *_nfs(self.proc / "self/mountstats", self.proc / "self/mountinfo"),
            *_lustre(self.proc / "fs/lustre/llite"),
        ]
        if not amounts:
            return {}
        return {"fs_read_b": sum(read for read, _ in amounts), "fs_write_b": sum(written for _, written in amounts)}


def descendants(proc: Path, root: int, leave_out: int = -1) -> list[int]:
    """`root` and all processes below it, without `leave_out` and what is below that."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir(proc):
        if entry.name.isdecimal():
            try:
                fields = (proc / entry.name / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += [child for child in children.get(pid, []) if child != leave_out]
    return found


def _attempt(part: Callable[[], Row]) -> Row:
    try:
        return part()
    except (OSError, ValueError, KeyError, IndexError):
        return {}


def _cgroup_of(process: Path, root: Path) -> Path | None:
    """The process's cgroup v2 folder; None where the kernel or the container offers none.

    Of a Slurm job it is the job's own: below `job_7` every step and task has one, and slurmstepd another.
    """
    try:
        lines = (process / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("0::"):
            job = re.match(r"/(?:.*/)?job_\d+(?=/|$)", line[3:])
            path = root / (job[0] if job else line[3:]).lstrip("/")
            return path if (path / "cpu.stat").exists() else None
    return None


def _run_delay_s(folder: Path) -> float:
    try:
        return int((folder / "schedstat").read_text().split()[1]) * 1e-9
    except (OSError, ValueError, IndexError):
        return 0.0


def _storage(folder: Path) -> tuple[int, int] | None:
    try:
        fields = dict(line.split(": ") for line in (folder / "io").read_text().splitlines())
        return int(fields["read_bytes"]), int(fields["write_bytes"])
    except (OSError, ValueError, KeyError):
        return None


def _number(path: Path) -> float | None:
    """The number in a file; None when it is `max`, or not there."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _pairs(path: Path) -> dict[str, int]:
    try:
        return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}
    except (OSError, ValueError):
        return {}


def _io_stat(path: Path) -> tuple[int, int] | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    read = written = 0
    for line in lines:
        fields = dict(item.split("=") for item in line.split()[1:] if "=" in item)
        read, written = read + int(fields.get("rbytes", 0)), written + int(fields.get("wbytes", 0))
    return read, written


def _nfs(statistics: Path, mounts: Path) -> list[tuple[int, int]]:
    """Per NFS file system, bytes read from and written to the server: fields 5 and 6 of its `bytes:` line.

    All mounts of one file system show the same counters: they count once, by the device number that they share.
    """
    try:
        lines = statistics.read_text(errors="replace").splitlines()
    except OSError:
        return []
    numbers = _device_numbers(mounts)
    found: dict[str, tuple[int, int]] = {}
    export = ""
    for line in lines:
        words = line.split()
        if words[:1] == ["device"] and "on" in words[:-1]:
            export = numbers.get(words[words.index("on") + 1], words[1])
        elif words[:1] == ["bytes:"] and len(words) >= 7:
            found[export] = (int(words[5]), int(words[6]))
    return list(found.values())


def _device_numbers(mounts: Path) -> dict[str, str]:
    """Mount point -> major:minor."""
    try:
        rows = [line.split() for line in mounts.read_text(errors="replace").splitlines()]
    except OSError:
        return {}
    return {row[4]: row[2] for row in rows if len(row) > 4}


def _lustre(folder: Path) -> list[tuple[int, int]]:
    """Per Lustre mount, the sums behind `read_bytes` and `write_bytes`: samples [unit] min max sum."""
    amounts = []
    for stats in sorted(folder.glob("*/stats")):
        rows = {line.split()[0]: line.split() for line in stats.read_text().splitlines() if line.strip()}
        sums = [int(rows[name][6]) if len(rows.get(name, ())) > 6 else 0 for name in ("read_bytes", "write_bytes")]
        amounts.append((sums[0], sums[1]))
    return amounts
